//! Statements at work.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::args::Args;
use super::ast::{Expr, Kind, Statement, Target, Tree};
use super::value::{Frame, Function, Loop, Object, Value};
use super::{Error, Limits, Result, text};

/// Macros and loops that call each other, at most.
const DEPTH_MAX: u32 = 64;
/// Steps between two looks at whether anybody waits.
const LOOK_STEPS: u64 = 1 << 14;

/// What a statement means to those around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    Next,
    Break,
    Continue,
}

/// One rendering.
pub struct Run<'t> {
    pub(super) tree: &'t Tree,
    limits: Limits,
    abandoned: &'t AtomicBool,
    fuel: u64,
    next_look: u64,
    line: u32,
    depth: u32,
    /// Bytes in all texts that are being written.
    written: usize,
}

pub(super) fn render(
    tree: &Tree,
    variables: impl IntoIterator<Item = (String, Value)>,
    limits: Limits,
    abandoned: &AtomicBool,
) -> std::result::Result<String, (Error, u32)> {
    let fuel = limits.fuel;
    let mut run =
        Run { tree, limits, abandoned, fuel, next_look: fuel, line: 1, depth: 0, written: 0 };
    let outside = Rc::new(Frame::default());
    for (name, value) in variables {
        outside.set(&name, value);
    }
    let frame = Frame::inside(&outside);
    let mut out = String::new();
    match run.body(&tree.body, &frame, &mut out) {
        Ok(_) => Ok(out),
        Err(error) => Err((error, run.line)),
    }
}

impl<'t> Run<'t> {
    /// Pays for some work; 64 items or bytes cost a step.
    ///
    /// # Errors
    /// There is nothing left to pay with, or nobody waits.
    pub(super) fn pay(&mut self, work: usize) -> Result<()> {
        let steps = 1 + (work / 64) as u64;
        if self.fuel < steps {
            let all = self.limits.fuel;
            return Err(Error::failed(format!("the template takes more than {all} steps")));
        }
        self.fuel -= steps;
        if self.fuel <= self.next_look {
            self.next_look = self.fuel.saturating_sub(LOOK_STEPS);
            if self.abandoned.load(Ordering::Relaxed) {
                return Err(Error::Abandoned);
            }
        }
        Ok(())
    }

    fn wrote(&mut self, before: usize, out: &str) -> Result<()> {
        self.written += out.len() - before;
        self.pay(out.len() - before)?;
        if self.written > self.limits.bytes {
            let most = self.limits.bytes;
            return Err(Error::failed(format!("the template writes more than {most} bytes")));
        }
        Ok(())
    }

    /// One level further into what calls itself.
    pub(super) fn deeper<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth >= DEPTH_MAX {
            return Err(Error::failed(format!("more than {DEPTH_MAX} calls inside each other")));
        }
        self.depth += 1;
        let done = work(self);
        self.depth -= 1;
        done
    }

    pub(super) fn body(
        &mut self,
        body: &'t [Statement],
        frame: &Rc<Frame>,
        out: &mut String,
    ) -> Result<Flow> {
        for statement in body {
            match self.statement(statement, frame, out)? {
                Flow::Next => {}
                flow => return Ok(flow),
            }
        }
        Ok(Flow::Next)
    }

    fn statement(
        &mut self,
        statement: &'t Statement,
        frame: &Rc<Frame>,
        out: &mut String,
    ) -> Result<Flow> {
        self.line = statement.line;
        self.pay(0)?;
        match &statement.kind {
            Kind::Text(text) => {
                let before = out.len();
                out.push_str(text);
                self.wrote(before, out)?;
            }
            Kind::Print(expr) => {
                let value = self.eval(expr, frame)?;
                let before = out.len();
                text::write(&value, out);
                self.wrote(before, out)?;
            }
            Kind::If { branches, otherwise } => {
                for (condition, body) in branches {
                    if self.eval(condition, frame)?.is_true() {
                        return self.body(body, frame, out);
                    }
                }
                return self.body(otherwise, frame, out);
            }
            Kind::For(index) => {
                let value = self.eval(&self.tree.loops[*index].over, frame)?;
                self.iterate(*index, &value, frame, 0, out)?;
            }
            Kind::Set(target, expr) => {
                let value = self.eval(expr, frame)?;
                self.assign(target, value, frame)?;
            }
            Kind::SetBlock(target, filter, body) => {
                let value = self.captured(body, filter.as_ref(), frame)?;
                self.assign(target, value, frame)?;
            }
            Kind::Macro(index) => {
                let function = self.closure(*index, frame);
                frame.set(&self.tree.macros[*index].name, function);
            }
            Kind::Call { block, call } => {
                let caller = self.closure(*block, frame);
                let Expr::Call(function, args) = call else { return Ok(Flow::Next) };
                let function = self.eval(function, frame)?;
                let mut args = self.args(args, frame)?;
                args.keyword.push(("caller".into(), caller));
                let value = self.call(&function, args)?;
                let before = out.len();
                text::write(&value, out);
                self.wrote(before, out)?;
            }
            Kind::Filter(filter, body) => {
                let value = self.captured(body, Some(filter), frame)?;
                let before = out.len();
                text::write(&value, out);
                self.wrote(before, out)?;
            }
            Kind::With(values, body) => {
                let inner = Frame::inside(frame);
                // Values are those from outside; targets are seen inside alone.
                let values =
                    values.iter().map(|(target, expr)| Ok((target, self.eval(expr, frame)?)));
                for (target, value) in values.collect::<Result<Vec<_>>>()? {
                    self.assign(target, value, &inner)?;
                }
                return self.body(body, &inner, out);
            }
            Kind::Scope(body) => return self.body(body, &Frame::inside(frame), out),
            Kind::Break => return Ok(Flow::Break),
            Kind::Continue => return Ok(Flow::Continue),
            Kind::NoLoader => {
                return Err(Error::failed("no loader for this environment specified"));
            }
        }
        Ok(Flow::Next)
    }

    /// A macro, where it is defined.
    fn closure(&self, index: usize, frame: &Rc<Frame>) -> Value {
        let own = Arc::clone(&self.tree.macros[index]);
        Value::Function(Rc::new(Function::Macro(index, Rc::clone(frame), own)))
    }

    /// What a body writes, through filters.
    fn captured(
        &mut self,
        body: &'t [Statement],
        filter: Option<&'t Expr>,
        frame: &Rc<Frame>,
    ) -> Result<Value> {
        let mut text = String::new();
        let inner = Frame::inside(frame);
        self.body(body, &inner, &mut text)?;
        self.written -= text.len();
        let value = Value::str(text);
        match filter {
            Some(filter) => self.filtered(filter, value, frame),
            None => Ok(value),
        }
    }

    pub(super) fn assign(
        &mut self,
        target: &Target,
        value: Value,
        frame: &Rc<Frame>,
    ) -> Result<()> {
        match target {
            Target::Name(name) => frame.set(name, value),
            Target::Attribute(name, attribute) => {
                let namespace = frame.get(name);
                let Some(Value::Object(object)) = &namespace else {
                    return Err(Error::failed("cannot assign attribute on non-namespace object"));
                };
                let Object::Namespace(names) = &**object else {
                    return Err(Error::failed("cannot assign attribute on non-namespace object"));
                };
                names.borrow_mut().insert(Rc::from(&**attribute), value);
            }
            Target::Tuple(targets) => {
                let values = value.items()?;
                if values.len() != targets.len() {
                    let (wanted, found) = (targets.len(), values.len());
                    let message = if found > wanted {
                        format!("too many values to unpack (expected {wanted})")
                    } else {
                        format!("not enough values to unpack (expected {wanted}, got {found})")
                    };
                    return Err(Error::failed(message));
                }
                for (target, value) in targets.iter().zip(values) {
                    self.assign(target, value, frame)?;
                }
            }
        }
        Ok(())
    }

    /// Runs a loop over a value.
    pub(super) fn iterate(
        &mut self,
        index: usize,
        value: &Value,
        frame: &Rc<Frame>,
        depth: usize,
        out: &mut String,
    ) -> Result<()> {
        let tree = self.tree;
        let own = &tree.loops[index];
        let mut items = value.items()?;
        self.pay(items.len())?;
        if let Some(filter) = &own.filter {
            let mut kept = Vec::new();
            for item in items {
                let inner = Frame::inside(frame);
                self.assign(&own.target, item.clone(), &inner)?;
                if self.eval(filter, &inner)?.is_true() {
                    kept.push(item);
                }
            }
            items = kept;
        }
        if items.is_empty() {
            self.body(&own.otherwise, &Frame::inside(frame), out)?;
            return Ok(());
        }
        let state = Rc::new(Object::Loop(Loop {
            items,
            at: Cell::new(0),
            depth,
            changed: RefCell::new(None),
            recursive: own.recursive.then(|| (index, Rc::clone(frame))),
        }));
        let Object::Loop(current) = &*state else { return Ok(()) };
        // As Jinja2: one whose every round is left early counts as one without a round.
        let mut finished = false;
        for at in 0..current.items.len() {
            current.at.set(at);
            let inner = Frame::inside(frame);
            inner.set("loop", Value::Object(Rc::clone(&state)));
            self.assign(&own.target, current.items[at].clone(), &inner)?;
            match self.body(&own.body, &inner, out)? {
                Flow::Next => finished = true,
                Flow::Continue => {}
                Flow::Break => break,
            }
        }
        if !finished {
            self.body(&own.otherwise, &Frame::inside(frame), out)?;
        }
        Ok(())
    }

    /// Calls a macro.
    pub(super) fn call_macro(
        &mut self,
        index: usize,
        defined: &Rc<Frame>,
        args: Args,
    ) -> Result<Value> {
        let tree = self.tree;
        let own = &tree.macros[index];
        let frame = Frame::inside(defined);
        let Args { positional, keyword } = args;
        let mut keyword: Vec<_> = keyword;
        let mut take = |name: &str| {
            let at = keyword.iter().position(|(known, _)| **known == *name)?;
            Some(keyword.remove(at).1)
        };
        let mut positional = positional.into_iter();
        for (name, default) in &own.parameters {
            let value = match positional.next() {
                Some(value) => value,
                None => match (take(name), default) {
                    (Some(value), _) => value,
                    (None, Some(default)) => self.eval(default, &frame)?,
                    (None, None) => {
                        Value::undefined(&format!("parameter '{name}' was not provided; it"))
                    }
                },
            };
            frame.set(name, value);
        }
        if own.uses.caller && !own.parameters.iter().any(|(name, _)| &**name == "caller") {
            let caller =
                take("caller").unwrap_or_else(|| Value::undefined("No caller defined; it"));
            frame.set("caller", caller);
        }
        let left: Vec<Value> = positional.collect();
        if own.uses.varargs {
            frame.set("varargs", Value::tuple(left));
        } else if !left.is_empty() {
            let most = own.parameters.len();
            return Err(Error::failed(format!(
                "macro '{}' takes not more than {most} argument(s)",
                own.name
            )));
        }
        if own.uses.kwargs {
            let named = keyword
                .into_iter()
                .map(|(name, value)| (super::value::Key(Value::str(&*name)), value));
            frame.set("kwargs", Value::dict(named.collect()));
        } else if let Some((name, _)) = keyword.first() {
            return Err(Error::failed(match &**name {
                "caller" => {
                    format!(
                        "macro '{}' was invoked with two values for the special caller argument",
                        own.name
                    )
                }
                name => format!("macro '{}' takes no keyword argument '{name}'", own.name),
            }));
        }
        let line = self.line;
        let mut text = String::new();
        self.deeper(|run| run.body(&own.body, &frame, &mut text))?;
        self.written -= text.len();
        self.line = line;
        Ok(Value::str(text))
    }
}
