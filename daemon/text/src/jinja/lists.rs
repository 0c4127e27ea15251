//! Jinja2's filters of lists.

use std::cmp::Ordering;
use std::rc::Rc;

use super::args::{Args, args_missing, int_or, is_set, wrong};
use super::run::Run;
use super::value::{Key, Seq, SeqKind, Value, check_items, check_text, field};
use super::{Error, Result, checks, ops, text};

const NAMES: [&str; 20] = [
    "batch",
    "dictsort",
    "first",
    "groupby",
    "join",
    "last",
    "list",
    "max",
    "min",
    "random",
    "reject",
    "rejectattr",
    "reverse",
    "select",
    "selectattr",
    "slice",
    "sort",
    "sum",
    "unique",
    "xmlattr",
];

pub fn has(name: &str) -> bool {
    NAMES.contains(&name)
}

#[allow(clippy::mutable_key_type, reason = "`Value::key` lets no value be a key that can change")]
pub fn apply(run: &mut Run<'_>, name: &str, value: Value, args: Args) -> Result<Value> {
    if let Value::Seq(seq) = &value {
        run.pay(seq.items.len())?;
    }
    match name {
        "list" => Ok(Value::list(value.items()?)),
        "first" => {
            if let Value::Generator(left) = &value {
                return Ok(left.borrow_mut().next().unwrap_or_else(empty));
            }
            Ok(value.items()?.into_iter().next().unwrap_or_else(empty))
        }
        "last" => {
            if matches!(value, Value::Generator(_)) {
                return Err(Error::failed("'generator' object is not reversible"));
            }
            Ok(value.items()?.into_iter().next_back().unwrap_or_else(empty))
        }
        "random" => {
            let items = value.items()?;
            let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            let at = nanos.map_or(0, |since| since.subsec_nanos() as usize) % items.len().max(1);
            Ok(items.get(at).cloned().unwrap_or_else(empty))
        }
        "reverse" => match &value {
            Value::Str(text) => Ok(Value::str(text.text.chars().rev().collect::<String>())),
            other => {
                let mut items = other.items()?;
                items.reverse();
                // What Python cannot read backwards is a list afterwards.
                Ok(match other {
                    Value::Generator(_) => Value::list(items),
                    _ => Value::generator(items),
                })
            }
        },
        "join" => join(&value, args),
        "sum" => {
            let [attribute, start] = args.bind("sum", ["attribute", "start"])?;
            let mut sum = start.unwrap_or(Value::Int(0));
            for item in value.items()? {
                let item = by(&item, attribute.as_ref(), None)?;
                sum = ops::binary(super::ast::Binary::Add, &sum, &item)?;
            }
            Ok(sum)
        }
        "min" | "max" => {
            let [case_sensitive, attribute] = args.bind(name, ["case_sensitive", "attribute"])?;
            let fold = !is_set(case_sensitive, false);
            let mut best: Option<(Value, Value)> = None;
            for item in value.items()? {
                let key = folded(by(&item, attribute.as_ref(), None)?, fold);
                let better = match &best {
                    None => true,
                    Some((_, best)) => {
                        let order = order(&key, best)?;
                        if name == "min" { order.is_lt() } else { order.is_gt() }
                    }
                };
                if better {
                    best = Some((item, key));
                }
            }
            Ok(best.map_or_else(
                || Value::undefined("No aggregated item, sequence was empty; it"),
                |(item, _)| item,
            ))
        }
        "sort" => {
            let [reverse, case_sensitive, attribute] =
                args.bind("sort", ["reverse", "case_sensitive", "attribute"])?;
            let fold = !is_set(case_sensitive, false);
            let keys = |item: &Value| match attribute.as_ref().and_then(Value::as_str) {
                Some(paths) if paths.contains(',') => {
                    let keys = paths.split(',').map(|path| {
                        let path = Value::str(path);
                        Ok(folded(by(item, Some(&path), None)?, fold))
                    });
                    Ok(Value::list(keys.collect::<Result<_>>()?))
                }
                // As Jinja2, a list: of what is equal the order is not asked, as of what is not there.
                _ => Ok(Value::list(vec![folded(by(item, attribute.as_ref(), None)?, fold)])),
            };
            Ok(Value::list(sorted(value.items()?, keys, is_set(reverse, false))?))
        }
        "dictsort" => {
            let [case_sensitive, by, reverse] =
                args.bind("dictsort", ["case_sensitive", "by", "reverse"])?;
            let fold = !is_set(case_sensitive, false);
            let at = match by.as_ref().and_then(Value::as_str) {
                None | Some("key") => 0,
                Some("value") => 1,
                _ => return Err(Error::failed("You can only sort by either \"key\" or \"value\"")),
            };
            let Value::Dict(dict) = &value else { return Err(wrong("dictsort", &value)) };
            let pairs =
                dict.iter().map(|(key, value)| Value::tuple(vec![key.0.clone(), value.clone()]));
            let key = |pair: &Value| Ok(folded(ops::item(pair, &Value::Int(at))?, fold));
            Ok(Value::list(sorted(pairs.collect(), key, is_set(reverse, false))?))
        }
        "unique" => {
            let [case_sensitive, attribute] =
                args.bind("unique", ["case_sensitive", "attribute"])?;
            let fold = !is_set(case_sensitive, false);
            // A key is a value that nothing changes: lists and dicts are none.
            #[expect(clippy::mutable_key_type)]
            let mut seen = std::collections::HashSet::new();
            let mut items = Vec::new();
            for item in value.items()? {
                let key = folded(by(&item, attribute.as_ref(), None)?, fold).key()?;
                if seen.insert(key) {
                    items.push(item);
                }
            }
            Ok(Value::generator(items))
        }
        "groupby" => groupby(&value, args),
        "batch" => {
            let [size, fill] = args.bind("batch", ["linecount", "fill_with"])?;
            let size = int_or(size, 1)?;
            let fill = fill.filter(|fill| !matches!(fill, Value::None));
            let mut rows = Vec::new();
            let items = value.items()?;
            if size == 0 && !items.is_empty() {
                rows.push(Value::list(Vec::new()));
            }
            // A row is full when it has so many: never, below one.
            let full = usize::try_from(size).ok().filter(|size| *size > 0).unwrap_or(usize::MAX);
            for row in items.chunks(full) {
                let mut row = row.to_vec();
                if let (Some(fill), true) = (&fill, full < usize::MAX) {
                    check_items(full)?;
                    row.resize(full, fill.clone());
                }
                rows.push(Value::list(row));
            }
            Ok(Value::generator(rows))
        }
        "slice" => {
            let [slices, fill] = args.bind("slice", ["slices", "fill_with"])?;
            let (items, slices) = (value.items()?, int_or(slices, 1)?);
            if slices == 0 {
                return Err(Error::failed("integer division or modulo by zero"));
            }
            let slices = usize::try_from(slices.max(0)).unwrap_or(usize::MAX);
            check_items(slices)?;
            if slices == 0 {
                return Ok(Value::generator(Vec::new()));
            }
            let (each, more) = (items.len() / slices, items.len() % slices);
            let (mut rows, mut at) = (Vec::new(), 0);
            for number in 0..slices {
                let size = each + usize::from(number < more);
                let mut row = items[at..at + size].to_vec();
                at += size;
                let fill = fill.as_ref().filter(|fill| !matches!(fill, Value::None));
                row.extend(fill.filter(|_| number >= more).cloned());
                rows.push(Value::list(row));
            }
            Ok(Value::generator(rows))
        }
        "select" | "reject" | "selectattr" | "rejectattr" => choose(run, name, &value, args),
        "xmlattr" => {
            let [space] = args.bind("xmlattr", ["autospace"])?;
            let Value::Dict(dict) = &value else { return Err(wrong("xmlattr", &value)) };
            let shown =
                dict.iter().filter(|(_, v)| !matches!(v, Value::None | Value::Undefined(_)));
            let pair = |(key, value): (&Key, &Value)| {
                format!(
                    "{}=\"{}\"",
                    text::escape(&text::str(&key.0)),
                    text::escape(&text::str(value))
                )
            };
            let joined = shown.map(pair).collect::<Vec<_>>().join(" ");
            let space = if is_set(space, true) && !joined.is_empty() { " " } else { "" };
            Ok(Value::str(format!("{space}{joined}")))
        }
        other => Err(Error::failed(format!("No filter named '{other}'."))),
    }
}

fn empty() -> Value {
    Value::undefined("No first item, sequence was empty; it")
}

pub fn by(item: &Value, attribute: Option<&Value>, default: Option<&Value>) -> Result<Value> {
    match attribute {
        None | Some(Value::None) => Ok(item.clone()),
        Some(path) => by_path(item, path, default),
    }
}

fn folded(value: Value, fold: bool) -> Value {
    match &value {
        Value::Str(text) if fold => Value::str(text.text.to_lowercase()),
        _ => value,
    }
}

fn order(a: &Value, b: &Value) -> Result<Ordering> {
    match ops::order(a, b) {
        Ok(order) => Ok(order.unwrap_or(Ordering::Equal)),
        Err(()) if a.is_undefined() => Err(a.undefined_error()),
        Err(()) if b.is_undefined() => Err(b.undefined_error()),
        Err(()) => Err(Error::failed(format!(
            "'<' not supported between instances of '{}' and '{}'",
            a.type_name(),
            b.type_name()
        ))),
    }
}

/// Stable, as Python's; reversed, too.
fn sorted(
    items: Vec<Value>,
    key: impl Fn(&Value) -> Result<Value>,
    reverse: bool,
) -> Result<Vec<Value>> {
    let keyed = items.into_iter().map(|item| Ok((key(&item)?, item)));
    let mut keyed = keyed.collect::<Result<Vec<_>>>()?;
    let mut failed = None;
    keyed.sort_by(|(a, _), (b, _)| {
        let order = order(a, b).unwrap_or_else(|why| {
            failed.get_or_insert(why);
            Ordering::Equal
        });
        if reverse { order.reverse() } else { order }
    });
    match failed {
        Some(why) => Err(why),
        None => Ok(keyed.into_iter().map(|(_, item)| item).collect()),
    }
}

fn join(value: &Value, args: Args) -> Result<Value> {
    let [separator, attribute] = args.bind("join", ["d", "attribute"])?;
    let separator = separator.map_or_else(|| "".into(), |separator| text::str(&separator));
    let mut out = String::new();
    for (at, item) in value.items()?.iter().enumerate() {
        if at > 0 {
            out.push_str(&separator);
        }
        text::write(&by(item, attribute.as_ref(), None)?, &mut out);
        check_text(out.len())?;
    }
    Ok(Value::str(out))
}

fn groupby(value: &Value, args: Args) -> Result<Value> {
    let [attribute, default, case_sensitive] =
        args.bind("groupby", ["attribute", "default", "case_sensitive"])?;
    let fold = !is_set(case_sensitive, false);
    let raw = |item: &Value| by(item, attribute.as_ref(), default.as_ref());
    let items = sorted(value.items()?, |item| Ok(folded(raw(item)?, fold)), false)?;
    let mut groups: Vec<(Value, Value, Vec<Value>)> = Vec::new();
    for item in items {
        let own = raw(&item)?;
        let key = folded(own.clone(), fold);
        match groups.last_mut() {
            Some((last, _, items)) if *last == key => items.push(item),
            _ => groups.push((key, own, vec![item])),
        }
    }
    let group = |(_, grouper, items): (Value, Value, Vec<Value>)| {
        let items = vec![grouper, Value::list(items)];
        Value::Seq(Rc::new(Seq { items, kind: SeqKind::Group }))
    };
    Ok(Value::list(groups.into_iter().map(group).collect()))
}

fn choose(run: &mut Run<'_>, name: &str, value: &Value, mut args: Args) -> Result<Value> {
    let by_attribute = name.ends_with("attr");
    let wanted = name.starts_with("select");
    let attribute = match by_attribute {
        true if args.positional.is_empty() => return Err(args_missing(name)),
        true => Some(args.positional.remove(0)),
        false => None,
    };
    let test = (!args.positional.is_empty()).then(|| text::str(&args.positional.remove(0)));
    let mut out = Vec::new();
    // As Jinja2: what is false has no items, `none` among it.
    let items = if value.is_true() { value.items()? } else { Vec::new() };
    for item in items {
        let found = by(&item, attribute.as_ref(), None)?;
        let own = Args { positional: args.positional.clone(), keyword: args.keyword.clone() };
        let fits = match &test {
            Some(test) => checks::check(run, test, &found, own)?,
            None => found.is_true(),
        };
        if fits == wanted {
            out.push(item);
        }
    }
    Ok(Value::generator(out))
}

/// A part of a value by a path such as `a.b.0`, as filters take it.
fn by_path(value: &Value, path: &Value, default: Option<&Value>) -> Result<Value> {
    let Some(text) = path.as_str() else { return ops::item(value, path) };
    let mut found = value.clone();
    for part in text.split('.') {
        let is_index = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        let index =
            part.parse().ok().filter(|_| is_index).map_or_else(|| Value::str(part), Value::Int);
        // As Jinja2 looks it up here: items before attributes.
        found = match (&found, &index) {
            (Value::Dict(dict), Value::Str(name)) if field(dict, &name.text).is_some() => {
                field(dict, &name.text).cloned().unwrap_or(Value::None)
            }
            _ => ops::item(&found, &index)?,
        };
        if let (true, Some(default)) = (found.is_undefined(), default) {
            found = default.clone();
        }
    }
    Ok(found)
}

/// The value with the keys of dicts in their order, as far as they have one; at most so deep as values are written.
pub fn with_sorted_keys(value: &Value, depth: u32) -> Value {
    match value {
        _ if depth > text::DEPTH_MAX => value.clone(),
        Value::Dict(dict) => {
            let fields =
                dict.iter().map(|(key, value)| (key.clone(), with_sorted_keys(value, depth + 1)));
            let mut fields: Vec<_> = fields.collect();
            fields.sort_by(|(a, _), (b, _)| order(&a.0, &b.0).unwrap_or(Ordering::Equal));
            Value::dict(fields.into_iter().collect())
        }
        Value::Seq(seq) => {
            let items = seq.items.iter().map(|item| with_sorted_keys(item, depth + 1)).collect();
            Value::Seq(Rc::new(Seq { items, kind: seq.kind }))
        }
        other => other.clone(),
    }
}
