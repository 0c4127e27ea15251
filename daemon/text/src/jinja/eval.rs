//! Expressions at work.

use std::rc::Rc;

use super::args::Args;
use super::ast::{CallArgs, Expr};
use super::run::Run;
use super::value::{Dict, Frame, Function, Object, Value, check_text};
use super::{Error, Result, checks, filters, globals, methods, ops, text};

impl<'t> Run<'t> {
    pub(super) fn eval(&mut self, expr: &'t Expr, frame: &Rc<Frame>) -> Result<Value> {
        self.pay(0)?;
        Ok(match expr {
            Expr::Const(constant) => constant.into(),
            Expr::Name(name) => match frame.get(name).or_else(|| globals::find(name)) {
                Some(value) => value,
                None => Value::undefined(&format!("'{name}'")),
            },
            Expr::List(items) => Value::list(self.all(items, frame)?),
            Expr::Tuple(items) => Value::tuple(self.all(items, frame)?),
            Expr::Dict(items) => {
                let mut dict = Dict::new();
                for (key, value) in items {
                    let key = self.eval(key, frame)?.key()?;
                    dict.insert(key, self.eval(value, frame)?);
                }
                Value::dict(dict)
            }
            Expr::Not(value) => Value::Bool(!self.eval(value, frame)?.is_true()),
            Expr::Negative(value) => ops::negative(&self.eval(value, frame)?)?,
            Expr::Positive(value) => ops::positive(&self.eval(value, frame)?)?,
            Expr::Binary(op, left, right) => {
                let left = self.eval(left, frame)?;
                let right = self.eval(right, frame)?;
                let made = ops::binary(*op, &left, &right)?;
                self.pay_for(&made)?;
                made
            }
            Expr::Concat(parts) => {
                let mut out = String::new();
                for part in parts {
                    text::write(&self.eval(part, frame)?, &mut out);
                    check_text(out.len())?;
                }
                self.pay(out.len())?;
                Value::str(out)
            }
            Expr::And(left, right) => {
                let left = self.eval(left, frame)?;
                if left.is_true() { self.eval(right, frame)? } else { left }
            }
            Expr::Or(left, right) => {
                let left = self.eval(left, frame)?;
                if left.is_true() { left } else { self.eval(right, frame)? }
            }
            Expr::Compare(left, more) => {
                let mut left = self.eval(left, frame)?;
                for (op, right) in more {
                    let right = self.eval(right, frame)?;
                    self.pay_for(&left)?;
                    self.pay_for(&right)?;
                    if !ops::compare(*op, &left, &right)? {
                        return Ok(Value::Bool(false));
                    }
                    left = right;
                }
                Value::Bool(true)
            }
            Expr::If(condition, value, otherwise) => {
                if self.eval(condition, frame)?.is_true() {
                    self.eval(value, frame)?
                } else {
                    match otherwise {
                        Some(otherwise) => self.eval(otherwise, frame)?,
                        None => Value::undefined(
                            "the inline if-expression evaluated to false and no else section was defined; it",
                        ),
                    }
                }
            }
            Expr::Attribute(value, name) => ops::attribute(&self.eval(value, frame)?, name)?,
            Expr::Item(value, index) => {
                let value = self.eval(value, frame)?;
                let index = self.eval(index, frame)?;
                self.pay_for(&value)?;
                ops::item(&value, &index)?
            }
            Expr::Slice(value, bounds) => {
                let value = self.eval(value, frame)?;
                let mut numbers = [None; 3];
                for (number, bound) in numbers.iter_mut().zip(bounds) {
                    let Some(bound) = bound else { continue };
                    let bound = self.eval(bound, frame)?;
                    *number = match (&bound, bound.as_int()) {
                        (Value::None, _) => None,
                        (_, Some(number)) => Some(number),
                        // Beyond every end, as any such number is.
                        (Value::Large(digits), _) if digits.starts_with('-') => Some(i128::MIN),
                        (Value::Large(_), _) => Some(i128::MAX),
                        _ => {
                            return Err(Error::failed(
                                "slice indices must be integers or None or have an __index__ method",
                            ));
                        }
                    };
                }
                self.pay_for(&value)?;
                ops::slice(&value, numbers)?
            }
            Expr::Call(function, args) => {
                let function = self.eval(function, frame)?;
                let args = self.args(args, frame)?;
                self.call(&function, args)?
            }
            Expr::Filter(value, name, args) => {
                let value = match value {
                    Some(value) => self.eval(value, frame)?,
                    None => Value::str(""),
                };
                let args = self.args(args, frame)?;
                filters::apply(self, name, value, args)?
            }
            Expr::Test(value, name, args) => {
                let value = self.eval(value, frame)?;
                let args = self.args(args, frame)?;
                Value::Bool(checks::check(self, name, &value, args)?)
            }
        })
    }

    /// The filters of a block, over its text.
    pub(super) fn filtered(
        &mut self,
        filter: &'t Expr,
        text: Value,
        frame: &Rc<Frame>,
    ) -> Result<Value> {
        match filter {
            Expr::Filter(value, name, args) => {
                let value = match value {
                    Some(inner) => self.filtered(inner, text, frame)?,
                    None => text,
                };
                let args = self.args(args, frame)?;
                filters::apply(self, name, value, args)
            }
            other => self.eval(other, frame),
        }
    }

    fn pay_for(&mut self, value: &Value) -> Result<()> {
        self.pay(match value {
            Value::Str(text) => text.text.len(),
            Value::Seq(seq) => seq.items.len(),
            _ => 0,
        })
    }

    fn all(&mut self, items: &'t [Expr], frame: &Rc<Frame>) -> Result<Vec<Value>> {
        items.iter().map(|item| self.eval(item, frame)).collect()
    }

    pub(super) fn args(&mut self, args: &'t CallArgs, frame: &Rc<Frame>) -> Result<Args> {
        let mut positional = self.all(&args.positional, frame)?;
        let named =
            args.keyword.iter().map(|(name, value)| Ok((name.clone(), self.eval(value, frame)?)));
        let mut keyword = named.collect::<Result<Vec<_>>>()?;
        if let Some(star) = &args.star {
            positional.extend(self.eval(star, frame)?.items()?);
        }
        if let Some(double_star) = &args.double_star {
            let Value::Dict(dict) = self.eval(double_star, frame)? else {
                return Err(Error::failed("argument after ** must be a mapping"));
            };
            for (key, value) in dict.iter() {
                keyword.push((text::str(&key.0).as_ref().into(), value.clone()));
            }
        }
        Ok(Args { positional, keyword })
    }

    pub(super) fn call(&mut self, function: &Value, args: Args) -> Result<Value> {
        self.pay(0)?;
        match function {
            Value::Function(function) => match &**function {
                Function::Global(name) => globals::call(self, name, args),
                Function::Method(value, name) => methods::call(self, value, name, args),
                Function::Macro(index, frame, _) => self.call_macro(*index, frame, args),
            },
            Value::Object(object) => match &**object {
                Object::Joiner { separator, used } => {
                    Ok(if used.replace(true) { separator.clone() } else { Value::str("") })
                }
                Object::Loop(current) => {
                    let Some((index, frame)) = &current.recursive else {
                        return Err(Error::failed(
                            "The loop must have the 'recursive' marker to be called recursively.",
                        ));
                    };
                    let [over] = args.bind("loop", ["iterable"])?;
                    let over = over.unwrap_or(Value::None);
                    let mut out = String::new();
                    let depth = current.depth + 1;
                    self.deeper(|run| run.iterate(*index, &over, frame, depth, &mut out))?;
                    Ok(Value::str(out))
                }
                _ => Err(uncallable(&Value::Object(Rc::clone(object)))),
            },
            other => Err(uncallable(other)),
        }
    }
}

fn uncallable(value: &Value) -> Error {
    if value.is_undefined() {
        return value.undefined_error();
    }
    Error::failed(format!("'{}' object is not callable", value.type_name()))
}
