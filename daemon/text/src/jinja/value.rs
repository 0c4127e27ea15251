//! What a template computes with: Python's values, as far as templates can tell.
//!
//! Lists and objects cannot be changed, as in the sandbox that transformers renders in; namespaces, cyclers and the
//! like can.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::rc::Rc;
use std::sync::Arc;

use indexmap::IndexMap;
use minisgl_proto::integers;

use super::ast::{Const, Macro};
use super::{Error, Result};

/// Bytes of a text, and items of a list, at most.
pub const TEXT_BYTES_MAX: usize = 64 << 20;
pub const ITEMS_MAX: usize = 4 << 20;

#[derive(Clone, Debug)]
pub enum Value {
    /// With what was looked for.
    Undefined(Rc<str>),
    None,
    Bool(bool),
    Int(i128),
    /// An integer that `Int` does not hold, as Python writes it. It can be shown and compared, not computed with.
    Large(Rc<str>),
    Float(f64),
    Str(Str),
    Seq(Rc<Seq>),
    Dict(Rc<Dict>),
    /// What is left of a generator: it is true, has no length, and can be read once.
    Generator(Rc<RefCell<std::vec::IntoIter<Value>>>),
    Object(Rc<Object>),
    Function(Rc<Function>),
}

/// A text, and whether it is Jinja2's `Markup`, which escapes what is joined to it.
#[derive(Clone, Debug)]
pub struct Str {
    pub text: Rc<str>,
    pub safe: bool,
}

#[derive(Debug)]
pub struct Seq {
    pub items: Vec<Value>,
    pub kind: SeqKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeqKind {
    List,
    Tuple,
    Range,
    /// `dict.keys()` and its kin, by Python's name.
    View(&'static str),
    /// Of `groupby`: a tuple with names.
    Group,
}

pub type Dict = IndexMap<Key, Value>;

/// A value as a key: what is equal in Python hashes alike.
#[derive(Clone, Debug)]
pub struct Key(pub Value);

/// What can be changed.
#[derive(Debug)]
pub enum Object {
    Namespace(RefCell<IndexMap<Rc<str>, Value>>),
    Loop(Loop),
    Cycler { items: Vec<Value>, at: Cell<usize> },
    Joiner { separator: Value, used: Cell<bool> },
}

/// The variable `loop`.
#[derive(Debug)]
pub struct Loop {
    pub items: Vec<Value>,
    pub at: Cell<usize>,
    pub depth: usize,
    pub changed: RefCell<Option<Vec<Value>>>,
    /// The loop, and where it stands, if it calls itself.
    pub recursive: Option<(usize, Rc<Frame>)>,
}

/// Something to call.
#[derive(Debug)]
pub enum Function {
    /// One of Jinja2's own, by name.
    Global(&'static str),
    /// A method of a value.
    Method(Value, Rc<str>),
    /// By its place in the tree, and where it was defined.
    Macro(usize, Rc<Frame>, Arc<Macro>),
}

/// Variables, and those around them.
#[derive(Debug, Default)]
pub struct Frame {
    pub names: RefCell<HashMap<Rc<str>, Value>>,
    pub parent: Option<Rc<Frame>>,
}

impl Frame {
    pub fn inside(parent: &Rc<Frame>) -> Rc<Frame> {
        Rc::new(Frame { names: RefCell::default(), parent: Some(Rc::clone(parent)) })
    }

    pub fn get(&self, name: &str) -> Option<Value> {
        let mut frame = self;
        loop {
            if let Some(value) = frame.names.borrow().get(name) {
                return Some(value.clone());
            }
            frame = frame.parent.as_deref()?;
        }
    }

    pub fn set(&self, name: &str, value: Value) {
        self.names.borrow_mut().insert(name.into(), value);
    }
}

impl Value {
    pub fn str(text: impl Into<Rc<str>>) -> Value {
        Value::Str(Str { text: text.into(), safe: false })
    }

    /// An integer of any size, from its digits.
    pub fn int(digits: &str) -> Value {
        digits.parse().map_or_else(|_| Value::Large(digits.into()), Value::Int)
    }

    pub fn safe(text: impl Into<Rc<str>>) -> Value {
        Value::Str(Str { text: text.into(), safe: true })
    }

    pub fn list(items: Vec<Value>) -> Value {
        Value::Seq(Rc::new(Seq { items, kind: SeqKind::List }))
    }

    pub fn tuple(items: Vec<Value>) -> Value {
        Value::Seq(Rc::new(Seq { items, kind: SeqKind::Tuple }))
    }

    pub fn generator(items: Vec<Value>) -> Value {
        Value::Generator(Rc::new(RefCell::new(items.into_iter())))
    }

    pub fn dict(dict: Dict) -> Value {
        Value::Dict(Rc::new(dict))
    }

    pub fn undefined(name: &str) -> Value {
        Value::Undefined(name.into())
    }

    pub fn method(&self, name: &str) -> Value {
        Value::Function(Rc::new(Function::Method(self.clone(), name.into())))
    }

    pub fn is_undefined(&self) -> bool {
        matches!(self, Value::Undefined(_))
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::Str(text) => Some(&text.text),
            _ => None,
        }
    }

    /// A whole number, as Python's operators take it.
    pub fn as_int(&self) -> Option<i128> {
        match self {
            Value::Bool(value) => Some(i128::from(*value)),
            Value::Int(value) => Some(*value),
            _ => None,
        }
    }

    pub fn as_float(&self) -> Option<f64> {
        match self {
            Value::Float(value) => Some(*value),
            Value::Large(digits) => digits.parse().ok().filter(|number: &f64| number.is_finite()),
            other => other.as_int().map(|value| value as f64),
        }
    }

    pub fn is_true(&self) -> bool {
        match self {
            Value::Undefined(_) | Value::None => false,
            Value::Bool(value) => *value,
            Value::Int(value) => *value != 0,
            Value::Large(_) => true,
            Value::Float(value) => *value != 0.0,
            Value::Str(text) => !text.text.is_empty(),
            Value::Seq(seq) => !seq.items.is_empty(),
            Value::Dict(dict) => !dict.is_empty(),
            Value::Generator(_) | Value::Object(_) | Value::Function(_) => true,
        }
    }

    /// Python's name of its type.
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::Undefined(_) => "Undefined",
            Value::None => "NoneType",
            Value::Bool(_) => "bool",
            Value::Int(_) | Value::Large(_) => "int",
            Value::Float(_) => "float",
            Value::Str(text) if text.safe => "Markup",
            Value::Str(_) => "str",
            Value::Seq(seq) => match seq.kind {
                SeqKind::List => "list",
                SeqKind::Tuple => "tuple",
                SeqKind::Range => "range",
                SeqKind::View(name) => name,
                SeqKind::Group => "_GroupTuple",
            },
            Value::Dict(_) => "dict",
            Value::Generator(_) => "generator",
            Value::Object(object) => match **object {
                Object::Namespace(_) => "Namespace",
                Object::Loop(_) => "LoopContext",
                Object::Cycler { .. } => "Cycler",
                Object::Joiner { .. } => "Joiner",
            },
            Value::Function(_) => "function",
        }
    }

    /// Its items, as a loop reads them.
    pub fn items(&self) -> Result<Vec<Value>> {
        Ok(match self {
            Value::Undefined(_) => Vec::new(),
            Value::Str(text) => chars(&text.text),
            Value::Seq(seq) => seq.items.clone(),
            Value::Dict(dict) => dict.keys().map(|key| key.0.clone()).collect(),
            Value::Generator(left) => left.borrow_mut().by_ref().collect(),
            Value::Object(object) => match &**object {
                Object::Loop(l) => l.items[l.at.get()..].to_vec(),
                _ => return Err(self.not_iterable()),
            },
            _ => return Err(self.not_iterable()),
        })
    }

    fn not_iterable(&self) -> Error {
        Error::failed(format!("'{}' object is not iterable", self.type_name()))
    }

    pub fn is_iterable(&self) -> bool {
        match self {
            Value::Undefined(_)
            | Value::Str(_)
            | Value::Seq(_)
            | Value::Dict(_)
            | Value::Generator(_) => true,
            Value::Object(object) => matches!(**object, Object::Loop(_)),
            _ => false,
        }
    }

    /// `len()`
    pub fn length(&self) -> Result<usize> {
        match self {
            Value::Undefined(_) => Ok(0),
            Value::Str(text) => Ok(text.text.chars().count()),
            Value::Seq(seq) => Ok(seq.items.len()),
            Value::Dict(dict) => Ok(dict.len()),
            Value::Object(object) => match &**object {
                Object::Loop(l) => Ok(l.items.len()),
                _ => Err(self.no_length()),
            },
            _ => Err(self.no_length()),
        }
    }

    fn no_length(&self) -> Error {
        Error::failed(format!("object of type '{}' has no len()", self.type_name()))
    }

    /// As a key of a dict.
    pub fn key(&self) -> Result<Key> {
        match self {
            Value::Dict(_) | Value::Object(_) | Value::Function(_) | Value::Generator(_) => {
                Err(self.unhashable())
            }
            Value::Seq(seq) if seq.kind != SeqKind::Tuple && seq.kind != SeqKind::Group => {
                Err(self.unhashable())
            }
            other => Ok(Key(other.clone())),
        }
    }

    fn unhashable(&self) -> Error {
        Error::failed(format!("unhashable type: '{}'", self.type_name()))
    }

    /// The error of using what is not there.
    pub fn undefined_error(&self) -> Error {
        let name = match self {
            Value::Undefined(name) => name,
            _ => "value",
        };
        Error::failed(format!("{name} is undefined"))
    }
}

/// Each character as a text.
pub fn chars(text: &str) -> Vec<Value> {
    let mut buffer = [0; 4];
    text.chars().map(|c| Value::str(&*c.encode_utf8(&mut buffer))).collect()
}

impl From<&Const> for Value {
    fn from(constant: &Const) -> Value {
        match constant {
            Const::None => Value::None,
            Const::Bool(value) => Value::Bool(*value),
            Const::Int(value) => Value::Int(*value),
            Const::Float(value) => Value::Float(*value),
            Const::Str(text) => Value::str(&**text),
        }
    }
}

impl From<&serde_json::Value> for Value {
    fn from(json: &serde_json::Value) -> Value {
        use serde_json::Value as Json;
        match json {
            Json::Null => Value::None,
            Json::Bool(value) => Value::Bool(*value),
            Json::Number(number) => {
                let whole = number.as_i64().map(i128::from).or(number.as_u64().map(i128::from));
                whole.map_or_else(|| Value::Float(number.as_f64().unwrap_or(f64::NAN)), Value::Int)
            }
            Json::String(text) => Value::str(text.as_str()),
            Json::Array(items) => Value::list(items.iter().map(Value::from).collect()),
            Json::Object(fields) => {
                if let Some(digits) = integers::marked(json) {
                    return Value::int(digits);
                }
                let field = |(name, value): (&String, &Json)| {
                    (Key(Value::str(name.as_str())), value.into())
                };
                Value::dict(fields.iter().map(field).collect())
            }
        }
    }
}

impl PartialEq for Value {
    /// Python's `==`.
    fn eq(&self, other: &Value) -> bool {
        match (self, other) {
            (Value::Undefined(_), Value::Undefined(_)) | (Value::None, Value::None) => true,
            (Value::Str(a), Value::Str(b)) => a.text == b.text,
            (Value::Large(a), Value::Large(b)) => a == b,
            (Value::Large(_), Value::Int(_) | Value::Bool(_))
            | (Value::Int(_) | Value::Bool(_), Value::Large(_)) => false,
            (Value::Large(digits), Value::Float(number))
            | (Value::Float(number), Value::Large(digits)) => **digits == *whole_part(*number),
            (Value::Seq(a), Value::Seq(b)) => {
                let alike = |kind| if kind == SeqKind::Group { SeqKind::Tuple } else { kind };
                alike(a.kind) == alike(b.kind) && a.items == b.items
            }
            (Value::Dict(a), Value::Dict(b)) => {
                a.len() == b.len() && a.iter().all(|(key, value)| b.get(key) == Some(value))
            }
            (Value::Generator(a), Value::Generator(b)) => Rc::ptr_eq(a, b),
            (Value::Object(a), Value::Object(b)) => Rc::ptr_eq(a, b),
            (Value::Function(a), Value::Function(b)) => match (&**a, &**b) {
                (Function::Global(a), Function::Global(b)) => a == b,
                _ => Rc::ptr_eq(a, b),
            },
            _ => match (self.as_int(), other.as_int()) {
                (Some(a), Some(b)) => a == b,
                _ => match (self.as_float(), other.as_float()) {
                    (Some(a), Some(b)) => a == b,
                    _ => false,
                },
            },
        }
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Key) -> bool {
        self.0 == other.0
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match &self.0 {
            Value::Str(text) => text.text.hash(state),
            Value::Seq(seq) => seq.items.iter().for_each(|item| Key(item.clone()).hash(state)),
            Value::Float(value) if value.fract() == 0.0 => Some(*value as i128).hash(state),
            Value::Float(value) => value.to_bits().hash(state),
            // As a float that may be equal.
            large @ Value::Large(_) => large.as_float().map(|value| value as i128).hash(state),
            other => other.as_int().hash(state),
        }
    }
}

/// The digits of a float without what comes after the point; of one that is not finite, no digits.
pub fn whole_part(number: f64) -> String {
    format!("{:.0}", number.trunc())
}

/// A field of an object with text keys.
pub fn field<'d>(dict: &'d Dict, name: &str) -> Option<&'d Value> {
    dict.get(&Key(Value::str(name)))
}

/// Says that a text is too long, if it is.
pub fn check_text(bytes: usize) -> Result<()> {
    if bytes > TEXT_BYTES_MAX {
        return Err(Error::failed(format!("a text of more than {TEXT_BYTES_MAX} bytes")));
    }
    Ok(())
}

/// Says that a list is too long, if it is.
pub fn check_items(items: usize) -> Result<()> {
    if items > ITEMS_MAX {
        return Err(Error::failed(format!("a list of more than {ITEMS_MAX} items")));
    }
    Ok(())
}
