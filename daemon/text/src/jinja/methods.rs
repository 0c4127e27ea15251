//! Methods of values, as Python has them. Those that would change a value are not there.

use std::rc::Rc;

use super::args::{Args, args_missing};
use super::run::Run;
use super::value::{Key, Object, Seq, SeqKind, Value};
use super::{Error, Result, strings};

/// Calls a method.
pub fn call(run: &mut Run<'_>, value: &Value, name: &str, args: Args) -> Result<Value> {
    match value {
        Value::Str(text) => strings::call(run, text, name, args),
        Value::Dict(dict) => match name {
            "get" => {
                let [key, default] = args.bind("get", ["key", "default"])?;
                let Some(key) = key else { return Err(args_missing("get")) };
                Ok(dict.get(&key.key()?).cloned().or(default).unwrap_or(Value::None))
            }
            "copy" => Ok(value.clone()),
            "fromkeys" => {
                let [keys, own] = args.bind("fromkeys", ["iterable", "value"])?;
                let own = own.unwrap_or(Value::None);
                let keys = keys.ok_or_else(|| args_missing("fromkeys"))?.items()?;
                let fields = keys.iter().map(|key| Ok((key.key()?, own.clone())));
                Ok(Value::dict(fields.collect::<Result<_>>()?))
            }
            "keys" => view("dict_keys", dict.keys().map(|key| key.0.clone()).collect()),
            "values" => view("dict_values", dict.values().cloned().collect()),
            _ => {
                let pair =
                    |(key, value): (&Key, &Value)| Value::tuple(vec![key.0.clone(), value.clone()]);
                view("dict_items", dict.iter().map(pair).collect())
            }
        },
        Value::Seq(seq) => match name {
            "copy" => Ok(value.clone()),
            "count" => {
                let [item] = args.bind("count", ["value"])?;
                let item = item.ok_or_else(|| args_missing("count"))?;
                Ok(Value::Int(seq.items.iter().filter(|found| **found == item).count() as i128))
            }
            _ => {
                let [item, start, stop] = args.bind("index", ["value", "start", "stop"])?;
                let item = item.ok_or_else(|| args_missing("index"))?;
                let bound = |at: Option<Value>, default: usize| match at.and_then(|at| at.as_int())
                {
                    Some(at) if at < 0 => (at + seq.items.len() as i128).max(0) as usize,
                    Some(at) => at as usize,
                    None => default,
                };
                let (from, to) = (bound(start, 0), bound(stop, seq.items.len()));
                let places = (from..to.min(seq.items.len())).find(|at| seq.items[*at] == item);
                let missing = || {
                    let item = super::text::repr(&item);
                    Error::failed(format!("{item} is not in list"))
                };
                places.map(|at| Value::Int(at as i128)).ok_or_else(missing)
            }
        },
        Value::Int(_) | Value::Bool(_) => {
            let [] = args.bind(name, [])?;
            let number = value.as_int().unwrap_or(0);
            let bits = number.unsigned_abs();
            Ok(match name {
                "bit_length" => Value::Int(i128::from(128 - bits.leading_zeros())),
                "bit_count" => Value::Int(i128::from(bits.count_ones())),
                "conjugate" => Value::Int(number),
                _ => Value::tuple(vec![Value::Int(number), Value::Int(1)]),
            })
        }
        Value::Float(number) if name == "conjugate" => Ok(Value::Float(*number)),
        Value::Float(number) => Ok(Value::Bool(number.fract() == 0.0)),
        Value::Object(object) => match (&**object, name) {
            (Object::Loop(l), "changed") => {
                let values = args.positional;
                let changed = l.changed.borrow().as_ref() != Some(&values);
                *l.changed.borrow_mut() = Some(values);
                Ok(Value::Bool(changed))
            }
            (Object::Loop(l), _) => {
                let values = args.positional;
                if values.is_empty() {
                    return Err(Error::failed("no items for cycling given"));
                }
                Ok(values[l.at.get() % values.len()].clone())
            }
            (Object::Cycler { items, at }, "next") => {
                let current = items.get(at.get()).cloned().unwrap_or(Value::None);
                at.set((at.get() + 1) % items.len().max(1));
                Ok(current)
            }
            (Object::Cycler { at, .. }, _) => {
                at.set(0);
                Ok(Value::None)
            }
            _ => Err(Error::failed(format!("'{name}' cannot be called"))),
        },
        _ => Err(Error::failed(format!("'{name}' cannot be called"))),
    }
}

fn view(name: &'static str, items: Vec<Value>) -> Result<Value> {
    Ok(Value::Seq(Rc::new(Seq { items, kind: SeqKind::View(name) })))
}
