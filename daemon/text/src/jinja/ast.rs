//! The tree of a template.

use std::sync::Arc;

/// A constant, as it stands in the source.
#[derive(Clone, Debug, PartialEq)]
pub enum Const {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Arc<str>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    FloorDiv,
    Mod,
    Pow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    In,
    NotIn,
}

/// Arguments of a call, a filter or a test.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CallArgs {
    pub positional: Vec<Expr>,
    pub keyword: Vec<(Arc<str>, Expr)>,
    /// `*args`
    pub star: Option<Box<Expr>>,
    /// `**kwargs`
    pub double_star: Option<Box<Expr>>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Expr {
    Const(Const),
    Name(Arc<str>),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    Not(Box<Expr>),
    Negative(Box<Expr>),
    Positive(Box<Expr>),
    Binary(Binary, Box<Expr>, Box<Expr>),
    /// `~` over all of them.
    Concat(Vec<Expr>),
    And(Box<Expr>, Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
    Compare(Box<Expr>, Vec<(Compare, Expr)>),
    /// Condition, then, else.
    If(Box<Expr>, Box<Expr>, Option<Box<Expr>>),
    Attribute(Box<Expr>, Arc<str>),
    Item(Box<Expr>, Box<Expr>),
    Slice(Box<Expr>, [Option<Box<Expr>>; 3]),
    Call(Box<Expr>, CallArgs),
    /// Without a value inside a `{% filter %}` block: the block's text.
    Filter(Option<Box<Expr>>, Arc<str>, CallArgs),
    Test(Box<Expr>, Arc<str>, CallArgs),
}

/// What is assigned to.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    Name(Arc<str>),
    /// `{% set namespace.attribute = .. %}`
    Attribute(Arc<str>, Arc<str>),
    Tuple(Vec<Target>),
}

/// A statement and the line that it begins in.
#[derive(Clone, Debug, PartialEq)]
pub struct Statement {
    pub line: u32,
    pub kind: Kind,
}

pub type Body = Vec<Statement>;

#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    Text(Arc<str>),
    Print(Expr),
    If {
        branches: Vec<(Expr, Body)>,
        otherwise: Body,
    },
    /// By its place in [`Tree::loops`].
    For(usize),
    Set(Target, Expr),
    /// `{% set x %}..{% endset %}`, through filters.
    SetBlock(Target, Option<Expr>, Body),
    /// By its place in [`Tree::macros`].
    Macro(usize),
    /// `{% call(..) f() %}`: the block is a macro, the call follows.
    Call {
        block: usize,
        call: Expr,
    },
    /// `{% filter f %}`
    Filter(Expr, Body),
    With(Vec<(Target, Expr)>, Body),
    /// `{% block %}` and others that only make a scope.
    Scope(Body),
    Break,
    Continue,
    /// `{% include %}` and its kin, of which there is nothing to include.
    NoLoader,
}

#[derive(Clone, Debug, PartialEq)]
pub struct For {
    pub target: Target,
    pub over: Expr,
    pub filter: Option<Expr>,
    pub recursive: bool,
    pub body: Body,
    pub otherwise: Body,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Macro {
    pub name: Arc<str>,
    pub parameters: Vec<(Arc<str>, Option<Expr>)>,
    pub body: Body,
    /// The body mentions `varargs`, `kwargs`, `caller`.
    pub uses: Uses,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uses {
    pub varargs: bool,
    pub kwargs: bool,
    pub caller: bool,
}

/// A whole template. Loops and macros have a place of their own, so that values can refer to them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tree {
    pub body: Body,
    pub loops: Vec<For>,
    pub macros: Vec<Arc<Macro>>,
}
