//! Tokens to the tree of a template: statements.

use std::sync::Arc;

use super::Malformed;
use super::ast::{Body, Expr, For, Kind, Macro, Statement, Target, Uses};
use super::lexer::Token;
use super::parser::Parser;

type Parsed<T> = Result<T, Malformed>;

impl Parser {
    /// Statements up to one of these tags, whose name was read when this returns; with none, to the end.
    pub(super) fn body(&mut self, ends: &[&str]) -> Parsed<Body> {
        self.deeper(|parser| parser.body_inside(ends))
    }

    fn body_inside(&mut self, ends: &[&str]) -> Parsed<Body> {
        let mut body = Vec::new();
        loop {
            let line = self.line();
            match self.next() {
                None if ends.is_empty() => return Ok(body),
                None => {
                    return self
                        .fail(format!("a block has no end: {} is missing", ends.join(" or ")));
                }
                Some(Token::Text(text)) => body.push(Statement { line, kind: Kind::Text(text) }),
                Some(Token::PrintBegin) => {
                    let value = self.tuple(true, false)?;
                    if self.next() != Some(Token::PrintEnd) {
                        return self.fail("expected \"}}\"");
                    }
                    body.push(Statement { line, kind: Kind::Print(value) });
                }
                Some(Token::BlockBegin) => {
                    let name = self.expect_name()?;
                    if ends.contains(&&*name) {
                        return Ok(body);
                    }
                    if let Some(kind) = self.statement(&name)? {
                        body.push(Statement { line, kind });
                    }
                }
                Some(_) => return self.fail("unexpected token"),
            }
        }
    }

    fn end_tag(&mut self) -> Parsed<()> {
        if self.peek() == Some(&Token::BlockEnd) {
            self.next();
            return Ok(());
        }
        self.unexpected("\"%}\"")
    }

    /// A body and the end of the tag that ends it.
    fn block(&mut self, end: &str) -> Parsed<Body> {
        self.end_tag()?;
        let body = self.body(&[end])?;
        self.end_tag()?;
        Ok(body)
    }

    fn statement(&mut self, name: &str) -> Parsed<Option<Kind>> {
        Ok(Some(match name {
            "if" => self.if_statement()?,
            "for" => self.for_statement()?,
            "set" => self.set_statement()?,
            "macro" => self.macro_statement()?,
            "call" => self.call_statement()?,
            "filter" => {
                let (name, args) = self.filter_call()?;
                let value = self.filters(Expr::Filter(None, name, args))?;
                Kind::Filter(value, self.block("endfilter")?)
            }
            "with" => self.with_statement()?,
            "print" => {
                let value = self.tuple(true, false)?;
                self.end_tag()?;
                Kind::Print(value)
            }
            "block" => {
                self.expect_name()?;
                while self.skip_name("scoped") || self.skip_name("required") {}
                self.end_tag()?;
                let body = self.body(&["endblock"])?;
                if matches!(self.peek(), Some(Token::Name(_))) {
                    self.next();
                }
                self.end_tag()?;
                Kind::Scope(body)
            }
            "autoescape" => {
                self.expression()?;
                Kind::Scope(self.block("endautoescape")?)
            }
            // transformers' marks of what the assistant wrote, for training.
            "generation" => Kind::Scope(self.block("endgeneration")?),
            "break" | "continue" => {
                if self.inside_loops == 0 {
                    return self.fail(format!("{name} outside of a loop"));
                }
                self.end_tag()?;
                if name == "break" { Kind::Break } else { Kind::Continue }
            }
            "include" | "import" | "from" | "extends" => {
                while !matches!(self.peek(), None | Some(Token::BlockEnd)) {
                    self.next();
                }
                self.end_tag()?;
                Kind::NoLoader
            }
            other => return self.fail(format!("there is no tag {other:?} here")),
        }))
    }

    fn if_statement(&mut self) -> Parsed<Kind> {
        let mut branches = Vec::new();
        let mut condition = self.tuple(true, false)?;
        loop {
            self.end_tag()?;
            let body = self.body(&["elif", "else", "endif"])?;
            branches.push((condition, body));
            match self.previous_name().as_deref() {
                Some("elif") => condition = self.tuple(true, false)?,
                Some("else") => {
                    let otherwise = self.block("endif")?;
                    return Ok(Kind::If { branches, otherwise });
                }
                _ => {
                    self.end_tag()?;
                    return Ok(Kind::If { branches, otherwise: Vec::new() });
                }
            }
        }
    }

    fn for_statement(&mut self) -> Parsed<Kind> {
        let target = self.target(&["in"])?;
        if !self.skip_name("in") {
            return self.unexpected("\"in\"");
        }
        let over = self.tuple(false, false)?;
        let filter = if self.skip_name("if") { Some(self.expression()?) } else { None };
        let recursive = self.skip_name("recursive");
        self.end_tag()?;
        self.inside_loops += 1;
        let body = self.body(&["endfor", "else"])?;
        self.inside_loops -= 1;
        let otherwise = if self.previous_name().as_deref() == Some("else") {
            self.block("endfor")?
        } else {
            self.end_tag()?;
            Vec::new()
        };
        self.loops.push(For { target, over, filter, recursive, body, otherwise });
        Ok(Kind::For(self.loops.len() - 1))
    }

    /// Names to assign to, before one of these words.
    fn target(&mut self, ends: &[&str]) -> Parsed<Target> {
        let mut targets = Vec::new();
        let mut is_tuple = false;
        loop {
            if self.skip_op("(") {
                targets.push(self.deeper(|parser| parser.target(&[]))?);
                self.expect_op(")")?;
            } else {
                targets.push(Target::Name(self.expect_name()?));
            }
            if !self.skip_op(",") {
                break;
            }
            is_tuple = true;
            if ends.iter().any(|end| self.is_name(end)) || self.is_op(")") || self.is_op("=") {
                break;
            }
        }
        match targets.pop() {
            Some(only) if !is_tuple => Ok(only),
            last => {
                targets.extend(last);
                Ok(Target::Tuple(targets))
            }
        }
    }

    fn set_statement(&mut self) -> Parsed<Kind> {
        let mut target = self.target(&[])?;
        if let (Target::Name(name), true) = (&target, self.is_op(".")) {
            let name = Arc::clone(name);
            self.skip_op(".");
            target = Target::Attribute(name, self.expect_name()?);
        }
        if self.skip_op("=") {
            let value = self.tuple(true, false)?;
            self.end_tag()?;
            return Ok(Kind::Set(target, value));
        }
        let filter = if self.skip_op("|") {
            let (name, args) = self.filter_call()?;
            Some(self.filters(Expr::Filter(None, name, args))?)
        } else {
            None
        };
        Ok(Kind::SetBlock(target, filter, self.block("endset")?))
    }

    fn with_statement(&mut self) -> Parsed<Kind> {
        let mut values = Vec::new();
        while self.peek() != Some(&Token::BlockEnd) {
            let target = self.target(&[])?;
            self.expect_op("=")?;
            values.push((target, self.expression()?));
            if !self.skip_op(",") {
                break;
            }
        }
        Ok(Kind::With(values, self.block("endwith")?))
    }

    fn parameters(&mut self) -> Parsed<Vec<(Arc<str>, Option<Expr>)>> {
        let mut parameters = Vec::new();
        self.expect_op("(")?;
        while !self.is_op(")") {
            let name = self.expect_name()?;
            let default = if self.skip_op("=") { Some(self.expression()?) } else { None };
            parameters.push((name, default));
            if !self.skip_op(",") {
                break;
            }
        }
        self.expect_op(")")?;
        Ok(parameters)
    }

    fn macro_statement(&mut self) -> Parsed<Kind> {
        let name = self.expect_name()?;
        let parameters = self.parameters()?;
        let index = self.macro_body(name, parameters, "endmacro")?;
        Ok(Kind::Macro(index))
    }

    fn macro_body(
        &mut self,
        name: Arc<str>,
        parameters: Vec<(Arc<str>, Option<Expr>)>,
        end: &str,
    ) -> Parsed<usize> {
        let from = self.position();
        // A loop around it is not one inside it.
        let loops = std::mem::take(&mut self.inside_loops);
        let body = self.block(end)?;
        self.inside_loops = loops;
        let names = self.names_since(from);
        let mentions = |name: &str| names.iter().any(|found| &**found == name);
        let uses = Uses {
            varargs: mentions("varargs"),
            kwargs: mentions("kwargs"),
            caller: mentions("caller"),
        };
        self.macros.push(Arc::new(Macro { name, parameters, body, uses }));
        Ok(self.macros.len() - 1)
    }

    fn call_statement(&mut self) -> Parsed<Kind> {
        let parameters = if self.is_op("(") { self.parameters()? } else { Vec::new() };
        let call = self.expression()?;
        if !matches!(call, Expr::Call(..)) {
            return self.fail("a call block needs a call");
        }
        let block = self.macro_body("".into(), parameters, "endcall")?;
        Ok(Kind::Call { block, call })
    }
}
