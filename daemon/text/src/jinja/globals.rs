//! Functions that every template has.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::args::{Args, args_missing, int_or};
use super::run::Run;
use super::value::{Dict, Function, Key, Object, Seq, SeqKind, Value};
use super::{Error, Result, text, time};

const NAMES: [&str; 8] =
    ["cycler", "dict", "joiner", "lipsum", "namespace", "raise_exception", "range", "strftime_now"];

/// Items of a range at most, as in Jinja2's sandbox.
const RANGE_MAX: i128 = 100_000;

/// The function of this name.
pub fn find(name: &str) -> Option<Value> {
    let known = NAMES.iter().find(|known| **known == name)?;
    Some(Value::Function(Rc::new(Function::Global(known))))
}

pub fn call(run: &mut Run<'_>, name: &str, args: Args) -> Result<Value> {
    match name {
        "range" => {
            let [first, second, step] = args.bind("range", ["start", "stop", "step"])?;
            let Some(first) = first else { return Err(args_missing("range")) };
            let first = int_or(Some(first), 0)?;
            let (start, stop) = match second {
                Some(stop) => (first, int_or(Some(stop), 0)?),
                None => (0, first),
            };
            let step = int_or(step, 1)?;
            if step == 0 {
                return Err(Error::failed("range() arg 3 must not be zero"));
            }
            let span =
                if step > 0 { stop.saturating_sub(start) } else { start.saturating_sub(stop) };
            let size = step.unsigned_abs().min(i128::MAX as u128) as i128;
            let count = if span <= 0 { 0 } else { (span - 1) / size + 1 };
            if count > RANGE_MAX {
                return Err(Error::failed(format!(
                    "Range too big. The sandbox blocks ranges larger than MAX_RANGE ({RANGE_MAX})."
                )));
            }
            run.pay(count as usize)?;
            let items = (0..count).map(|at| Value::Int(start + at * step)).collect();
            Ok(Value::Seq(Rc::new(Seq { items, kind: SeqKind::Range })))
        }
        "dict" => Ok(Value::dict(dict(args)?)),
        "namespace" => {
            let names =
                dict(args)?.into_iter().map(|(key, value)| (text::str(&key.0), value)).collect();
            Ok(Value::Object(Rc::new(Object::Namespace(RefCell::new(names)))))
        }
        "cycler" => {
            let items = args.positional;
            if items.is_empty() {
                return Err(Error::failed("at least one item has to be provided"));
            }
            Ok(Value::Object(Rc::new(Object::Cycler { items, at: Cell::new(0) })))
        }
        "joiner" => {
            let [separator] = args.bind("joiner", ["sep"])?;
            let separator = separator.unwrap_or_else(|| Value::str(", "));
            Ok(Value::Object(Rc::new(Object::Joiner { separator, used: Cell::new(false) })))
        }
        "raise_exception" => {
            let [message] = args.bind("raise_exception", ["message"])?;
            Err(Error::Raised(text::str(&message.unwrap_or(Value::None)).to_string()))
        }
        "strftime_now" => {
            let [format] = args.bind("strftime_now", ["format"])?;
            Ok(Value::str(time::now(&super::args::text_of(format, "strftime_now")?)))
        }
        other => Err(Error::failed(format!("{other}() is not supported"))),
    }
}

/// `dict(mapping, **more)`
fn dict(args: Args) -> Result<Dict> {
    let mut out = Dict::new();
    for given in args.positional {
        match &given {
            Value::Dict(dict) => {
                out.extend(dict.iter().map(|(key, value)| (key.clone(), value.clone())))
            }
            Value::Object(object) => {
                if let Object::Namespace(names) = &**object {
                    let pair = |(name, value): (&Rc<str>, &Value)| {
                        (Key(Value::str(Rc::clone(name))), value.clone())
                    };
                    out.extend(names.borrow().iter().map(pair));
                }
            }
            other => {
                for pair in other.items()? {
                    let [key, value] = &pair.items()?[..] else {
                        return Err(Error::failed("dict() takes pairs"));
                    };
                    out.insert(key.key()?, value.clone());
                }
            }
        }
    }
    out.extend(args.keyword.into_iter().map(|(name, value)| (Key(Value::str(&*name)), value)));
    Ok(out)
}
