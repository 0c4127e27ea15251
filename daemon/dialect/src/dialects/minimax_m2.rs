//! MiniMax M2: invocations with parameters, all in one block.
//!
//! ```text
//!   <think>\nthought\n</think>\n\ntext\n<minimax:tool_call>\n<invoke name="f">\n<parameter name="city">Paris</parameter>\n</invoke>\n</minimax:tool_call>
//! ```
//!
//! Values stand as they are, with their line breaks. The template opens the thought itself.

use crate::body::{XmlCall, XmlForm};
use crate::dialect::{Dialect, Ids, Talk};
use crate::dialects::think::THOUGHT;
use crate::flow::{Flow, Opener};
use crate::grammar::{Arguments, Enforcement, Tag};

static FORM: XmlForm = XmlForm {
    name_open: "<invoke name=",
    name_close: &[(">", true)],
    key_open: "<parameter name=",
    key_close: ">",
    value_open: "",
    value_close: "</parameter>",
    call_close: "</invoke>",
    close: &["</minimax:tool_call>"],
    lines: false,
};

/// See the file's head.
pub(crate) static DIALECT: Dialect = Dialect {
    name: "minimax_m2",
    about: "MiniMax M2: <invoke> in <minimax:tool_call>",
    known_by: |checkpoint| checkpoint.says("<minimax:tool_call>"),
    talk: Talk::Flow(Flow {
        thought: Some(THOUGHT),
        calls: &[Opener { marker: "<minimax:tool_call>", body: || Box::new(XmlCall::new(&FORM)) }],
        silent: &[],
        frame: None,
        bare: &[],
    }),
    ids: Ids::Any,
    enforcement: Enforcement {
        tag: Some(Tag {
            first: "<minimax:tool_call>\n",
            begin: "<invoke name=\"NAME\">\n",
            arguments: Arguments::Tagged {
                open: "<parameter name=\"",
                middle: "\">",
                close: "</parameter>\n",
            },
            end: "</invoke>\n",
            between: "",
            last: "</minimax:tool_call>",
        }),
        other: None,
        inner_markers: &[],
    },
};
