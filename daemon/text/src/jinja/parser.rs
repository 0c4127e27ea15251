//! Tokens to the tree of a template: expressions. Statements are in `statements`.

use std::sync::Arc;

use super::Malformed;
use super::ast::{Binary, CallArgs, Compare, Const, Expr, For, Macro, Tree};
use super::lexer::{Token, tokens};

/// Expressions and blocks inside each other, at most.
const DEPTH_MAX: u32 = 64;

pub(super) struct Parser {
    tokens: Vec<(u32, Token)>,
    at: usize,
    depth: u32,
    pub(super) loops: Vec<For>,
    pub(super) macros: Vec<Arc<Macro>>,
    /// Loops around the statement being read.
    pub(super) inside_loops: u32,
}

/// The tree of a source.
pub fn parse(source: &str) -> Result<Tree, Malformed> {
    let mut parser = Parser {
        tokens: tokens(source)?,
        at: 0,
        depth: 0,
        loops: Vec::new(),
        macros: Vec::new(),
        inside_loops: 0,
    };
    let body = parser.body(&[])?;
    Ok(Tree { body, loops: parser.loops, macros: parser.macros })
}

type Parsed<T> = Result<T, Malformed>;

impl Parser {
    pub(super) fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |(line, _)| *line)
    }

    pub(super) fn fail<T>(&self, message: impl Into<String>) -> Parsed<T> {
        Err(Malformed { line: self.line(), message: message.into() })
    }

    pub(super) fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|(_, token)| token)
    }

    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// The name that was read last.
    pub(super) fn previous_name(&self) -> Option<Arc<str>> {
        match self.tokens.get(self.at.checked_sub(1)?) {
            Some((_, Token::Name(name))) => Some(Arc::clone(name)),
            _ => None,
        }
    }

    /// Names that were read from a position on.
    pub(super) fn names_since(&self, from: usize) -> Vec<Arc<str>> {
        let read = self.tokens[from..self.at].iter();
        let name = |token: &(u32, Token)| match token {
            (_, Token::Name(name)) => Some(Arc::clone(name)),
            _ => None,
        };
        read.filter_map(name).collect()
    }

    fn peek_at(&self, ahead: usize) -> Option<&Token> {
        self.tokens.get(self.at + ahead).map(|(_, token)| token)
    }

    pub(super) fn next(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.at).map(|(_, token)| token.clone());
        self.at += 1;
        token
    }

    pub(super) fn is_op(&self, op: &str) -> bool {
        matches!(self.peek(), Some(Token::Op(found)) if *found == op)
    }

    pub(super) fn is_name(&self, name: &str) -> bool {
        matches!(self.peek(), Some(Token::Name(found)) if &**found == name)
    }

    pub(super) fn skip_op(&mut self, op: &str) -> bool {
        let found = self.is_op(op);
        self.at += usize::from(found);
        found
    }

    pub(super) fn skip_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        self.at += usize::from(found);
        found
    }

    pub(super) fn expect_op(&mut self, op: &str) -> Parsed<()> {
        if self.skip_op(op) {
            return Ok(());
        }
        self.unexpected(&format!("{op:?}"))
    }

    pub(super) fn expect_name(&mut self) -> Parsed<Arc<str>> {
        match self.peek() {
            Some(Token::Name(name)) => {
                let name = Arc::clone(name);
                self.at += 1;
                Ok(name)
            }
            _ => self.unexpected("a name"),
        }
    }

    pub(super) fn unexpected<T>(&self, wanted: &str) -> Parsed<T> {
        let found = match self.peek() {
            None => "the end of the template".to_owned(),
            Some(Token::Name(name)) => format!("{name:?}"),
            Some(Token::Op(op)) => format!("{op:?}"),
            Some(Token::BlockEnd) => "\"%}\"".to_owned(),
            Some(Token::PrintEnd) => "\"}}\"".to_owned(),
            Some(_) => "something else".to_owned(),
        };
        self.fail(format!("expected {wanted}, found {found}"))
    }

    pub(super) fn deeper<T>(&mut self, read: impl FnOnce(&mut Parser) -> Parsed<T>) -> Parsed<T> {
        if self.depth >= DEPTH_MAX {
            return self
                .fail(format!("more than {DEPTH_MAX} expressions or blocks inside each other"));
        }
        self.depth += 1;
        let read = read(self);
        self.depth -= 1;
        read
    }

    pub(super) fn expression(&mut self) -> Parsed<Expr> {
        self.deeper(|parser| {
            let mut value = parser.or()?;
            while parser.skip_name("if") {
                let condition = parser.or()?;
                let otherwise = if parser.skip_name("else") {
                    Some(Box::new(parser.expression()?))
                } else {
                    None
                };
                value = Expr::If(Box::new(condition), Box::new(value), otherwise);
            }
            Ok(value)
        })
    }

    /// An expression without a condition after it.
    pub(super) fn or(&mut self) -> Parsed<Expr> {
        let mut left = self.and()?;
        while self.skip_name("or") {
            left = Expr::Or(Box::new(left), Box::new(self.and()?));
        }
        Ok(left)
    }

    fn and(&mut self) -> Parsed<Expr> {
        let mut left = self.not()?;
        while self.skip_name("and") {
            left = Expr::And(Box::new(left), Box::new(self.not()?));
        }
        Ok(left)
    }

    fn not(&mut self) -> Parsed<Expr> {
        if self.skip_name("not") {
            return self.deeper(|parser| Ok(Expr::Not(Box::new(parser.not()?))));
        }
        self.compare()
    }

    fn compare(&mut self) -> Parsed<Expr> {
        let left = self.sum()?;
        let mut more = Vec::new();
        loop {
            let op = match self.peek() {
                Some(Token::Op("==")) => Compare::Eq,
                Some(Token::Op("!=")) => Compare::Ne,
                Some(Token::Op("<")) => Compare::Lt,
                Some(Token::Op("<=")) => Compare::Le,
                Some(Token::Op(">")) => Compare::Gt,
                Some(Token::Op(">=")) => Compare::Ge,
                Some(Token::Name(name)) if &**name == "in" => Compare::In,
                Some(Token::Name(name)) if &**name == "not" => match self.peek_at(1) {
                    Some(Token::Name(name)) if &**name == "in" => {
                        self.at += 1;
                        Compare::NotIn
                    }
                    _ => break,
                },
                _ => break,
            };
            self.at += 1;
            more.push((op, self.sum()?));
        }
        if more.is_empty() { Ok(left) } else { Ok(Expr::Compare(Box::new(left), more)) }
    }

    fn sum(&mut self) -> Parsed<Expr> {
        let mut left = self.concat()?;
        loop {
            let op = match self.peek() {
                Some(Token::Op("+")) => Binary::Add,
                Some(Token::Op("-")) => Binary::Sub,
                _ => return Ok(left),
            };
            self.at += 1;
            left = Expr::Binary(op, Box::new(left), Box::new(self.concat()?));
        }
    }

    fn concat(&mut self) -> Parsed<Expr> {
        let first = self.product()?;
        if !self.is_op("~") {
            return Ok(first);
        }
        let mut parts = vec![first];
        while self.skip_op("~") {
            parts.push(self.product()?);
        }
        Ok(Expr::Concat(parts))
    }

    fn product(&mut self) -> Parsed<Expr> {
        let mut left = self.power()?;
        loop {
            let op = match self.peek() {
                Some(Token::Op("*")) => Binary::Mul,
                Some(Token::Op("/")) => Binary::Div,
                Some(Token::Op("//")) => Binary::FloorDiv,
                Some(Token::Op("%")) => Binary::Mod,
                _ => return Ok(left),
            };
            self.at += 1;
            left = Expr::Binary(op, Box::new(left), Box::new(self.power()?));
        }
    }

    fn power(&mut self) -> Parsed<Expr> {
        let mut left = self.unary(true)?;
        while self.skip_op("**") {
            left = Expr::Binary(Binary::Pow, Box::new(left), Box::new(self.unary(true)?));
        }
        Ok(left)
    }

    fn unary(&mut self, with_filter: bool) -> Parsed<Expr> {
        let value = if self.skip_op("-") {
            Expr::Negative(Box::new(self.deeper(|parser| parser.unary(false))?))
        } else if self.skip_op("+") {
            Expr::Positive(Box::new(self.deeper(|parser| parser.unary(false))?))
        } else {
            self.primary()?
        };
        let value = self.postfix(value)?;
        if with_filter { self.filters(value) } else { Ok(value) }
    }

    fn primary(&mut self) -> Parsed<Expr> {
        let token = self.peek().cloned();
        match token {
            Some(Token::Name(name)) => {
                self.at += 1;
                Ok(match &*name {
                    "true" | "True" => Expr::Const(Const::Bool(true)),
                    "false" | "False" => Expr::Const(Const::Bool(false)),
                    "none" | "None" => Expr::Const(Const::None),
                    _ => Expr::Name(name),
                })
            }
            Some(Token::Str(first)) => {
                self.at += 1;
                let mut text = first.to_string();
                while let Some(Token::Str(more)) = self.peek() {
                    text.push_str(more);
                    self.at += 1;
                }
                Ok(Expr::Const(Const::Str(text.into())))
            }
            Some(Token::Int(number)) => {
                self.at += 1;
                Ok(Expr::Const(Const::Int(number)))
            }
            Some(Token::Float(number)) => {
                self.at += 1;
                Ok(Expr::Const(Const::Float(number)))
            }
            Some(Token::Op("(")) => {
                self.at += 1;
                let value = self.tuple(true, true)?;
                self.expect_op(")")?;
                Ok(value)
            }
            Some(Token::Op("[")) => {
                self.at += 1;
                let mut items = Vec::new();
                while !self.is_op("]") {
                    items.push(self.expression()?);
                    if !self.skip_op(",") {
                        break;
                    }
                }
                self.expect_op("]")?;
                Ok(Expr::List(items))
            }
            Some(Token::Op("{")) => {
                self.at += 1;
                let mut items = Vec::new();
                while !self.is_op("}") {
                    let key = self.expression()?;
                    self.expect_op(":")?;
                    items.push((key, self.expression()?));
                    if !self.skip_op(",") {
                        break;
                    }
                }
                self.expect_op("}")?;
                Ok(Expr::Dict(items))
            }
            _ => self.unexpected("an expression"),
        }
    }

    /// One expression, or several with commas between them. `explicit`: inside brackets, where there may be none.
    pub(super) fn tuple(&mut self, with_condition: bool, explicit: bool) -> Parsed<Expr> {
        let mut items = Vec::new();
        let mut is_tuple = false;
        loop {
            let ends = match self.peek() {
                None | Some(Token::BlockEnd | Token::PrintEnd | Token::Op(")")) => true,
                Some(Token::Name(name)) => &**name == "recursive" && !with_condition,
                _ => false,
            };
            if ends {
                break;
            }
            items.push(if with_condition { self.expression()? } else { self.or()? });
            if !self.skip_op(",") {
                break;
            }
            is_tuple = true;
        }
        match items.pop() {
            Some(only) if !is_tuple => Ok(only),
            Some(last) => {
                items.push(last);
                Ok(Expr::Tuple(items))
            }
            None if explicit => Ok(Expr::Tuple(items)),
            None => self.unexpected("an expression"),
        }
    }

    fn postfix(&mut self, mut value: Expr) -> Parsed<Expr> {
        loop {
            if self.skip_op(".") {
                value = match self.next() {
                    Some(Token::Name(name)) => Expr::Attribute(Box::new(value), name),
                    Some(Token::Int(index)) => {
                        Expr::Item(Box::new(value), Box::new(Expr::Const(Const::Int(index))))
                    }
                    _ => {
                        self.at -= 1;
                        return self.unexpected("a name or a number");
                    }
                };
            } else if self.skip_op("[") {
                value = self.subscript(value)?;
            } else if self.is_op("(") {
                let args = self.call_args()?;
                value = Expr::Call(Box::new(value), args);
            } else {
                return Ok(value);
            }
        }
    }

    fn subscript(&mut self, value: Expr) -> Parsed<Expr> {
        let mut items = Vec::new();
        let mut slice = None;
        while !self.is_op("]") {
            let mut bounds = [None, None, None];
            let mut colons = 0;
            while colons < 3 && !self.is_op("]") && !self.is_op(",") {
                if self.skip_op(":") {
                    colons += 1;
                } else {
                    bounds[colons] = Some(Box::new(self.expression()?));
                    if !self.is_op(":") {
                        break;
                    }
                }
            }
            if colons > 0 {
                slice = Some(bounds);
            } else if let [Some(item), ..] = bounds {
                items.push(*item);
            } else {
                return self.unexpected("an expression");
            }
            if !self.skip_op(",") {
                break;
            }
        }
        self.expect_op("]")?;
        match (slice, items.len()) {
            (Some(bounds), 0) => Ok(Expr::Slice(Box::new(value), bounds)),
            (None, 1) => Ok(Expr::Item(Box::new(value), Box::new(items.swap_remove(0)))),
            (None, 2..) => Ok(Expr::Item(Box::new(value), Box::new(Expr::Tuple(items)))),
            _ => self.fail("an index is one expression, or a slice"),
        }
    }

    pub(super) fn filters(&mut self, mut value: Expr) -> Parsed<Expr> {
        loop {
            if self.skip_op("|") {
                let (name, args) = self.filter_call()?;
                value = Expr::Filter(Some(Box::new(value)), name, args);
            } else if self.skip_name("is") {
                value = self.test(value)?;
            } else if self.is_op("(") {
                let args = self.call_args()?;
                value = Expr::Call(Box::new(value), args);
            } else {
                return Ok(value);
            }
        }
    }

    /// A filter's name and arguments.
    pub(super) fn filter_call(&mut self) -> Parsed<(Arc<str>, CallArgs)> {
        let name = self.dotted()?;
        let args = if self.is_op("(") { self.call_args()? } else { CallArgs::default() };
        Ok((name, args))
    }

    fn dotted(&mut self) -> Parsed<Arc<str>> {
        let mut name = self.expect_name()?.to_string();
        while self.skip_op(".") {
            name.push('.');
            name.push_str(&self.expect_name()?);
        }
        Ok(name.into())
    }

    fn test(&mut self, value: Expr) -> Parsed<Expr> {
        let negated = self.skip_name("not");
        let name = self.dotted()?;
        let args = match self.peek() {
            Some(Token::Op("(")) => self.call_args()?,
            Some(Token::Name(next)) if matches!(&**next, "else" | "or" | "and" | "is") => {
                if &**next == "is" {
                    return self.fail("tests cannot be chained with \"is\"");
                }
                CallArgs::default()
            }
            Some(Token::Name(_) | Token::Str(_) | Token::Int(_) | Token::Float(_))
            | Some(Token::Op("[" | "{")) => {
                let argument = self.primary()?;
                let argument = self.postfix(argument)?;
                CallArgs { positional: vec![argument], ..CallArgs::default() }
            }
            _ => CallArgs::default(),
        };
        let test = Expr::Test(Box::new(value), name, args);
        Ok(if negated { Expr::Not(Box::new(test)) } else { test })
    }

    pub(super) fn call_args(&mut self) -> Parsed<CallArgs> {
        self.expect_op("(")?;
        let mut args = CallArgs::default();
        while !self.is_op(")") {
            if self.skip_op("*") {
                args.star = Some(Box::new(self.expression()?));
            } else if self.skip_op("**") {
                args.double_star = Some(Box::new(self.expression()?));
            } else if let (Some(Token::Name(name)), Some(Token::Op("="))) =
                (self.peek(), self.peek_at(1))
            {
                let name = Arc::clone(name);
                self.at += 2;
                args.keyword.push((name, self.expression()?));
            } else {
                if !args.keyword.is_empty() || args.double_star.is_some() {
                    return self.fail("an argument without a name follows one with a name");
                }
                args.positional.push(self.expression()?);
            }
            if !self.skip_op(",") {
                break;
            }
        }
        self.expect_op(")")?;
        Ok(args)
    }
}
