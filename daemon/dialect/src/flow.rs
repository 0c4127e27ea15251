//! The machine of all dialects that write text with markers in it: thoughts, calls, and markers without a meaning to
//! the reader.
//!
//! ```text
//!            open                    opener, or a bare call at the answer's beginning
//!   Thought <-----> Text <------------------> Call (a Body)
//!            close         closed, or no call: all of it is text again
//! ```
//!
//! Owns: the text that nobody took yet, what a call took before it began, and white space that may touch a marker, which
//! belongs to the marker. Must never: decide by how the text came in pieces, or hold more than [`HELD_BYTES_MAX`].
//!
//! In a thought an opener counts only where it opens a call of a tool that the request has: a model that forgets to
//! close its thought has its calls, and one that thinks about its markers is not cut short.

use std::sync::Arc;

use crate::body::{Body, Step};
use crate::calls::{Calls, Sink};
use crate::part::{Left, Outcome, Part, Phase};
use crate::scan::{Found, find, spaces, without_spaces};
use crate::tools::Tools;

/// Bytes that are held until a call begins. What is longer is text.
pub const HELD_BYTES_MAX: usize = 64 * 1024;
/// Bytes of white space that may belong to the marker behind it. A longer run is text.
const SPACE_BYTES_MAX: usize = 128;

/// Makes what reads a call.
pub(crate) type MakeBody = fn() -> Box<dyn Body>;

/// What begins a frame, and what ends it.
pub(crate) type Frame = (&'static [&'static str], &'static [&'static str]);

/// Markers, and what they mean.
pub(crate) struct Flow {
    /// Markers that open and close a thought.
    pub(crate) thought: Option<Thought>,
    /// What opens calls.
    pub(crate) calls: &'static [Opener],
    /// Markers that say nothing to the reader.
    pub(crate) silent: &'static [&'static str],
    /// Markers around the answer that people write, too: the first counts where the answer begins, the second behind it. Where
    /// the first opens calls as well, it is a frame where calls are read and none follows.
    pub(crate) frame: Option<Frame>,
    /// Calls that begin without a marker where an answer does: what they begin with, and how they go on. Only tools of
    /// the request are called so.
    pub(crate) bare: &'static [(char, MakeBody)],
}

impl Flow {
    /// The frame, as far as it counts.
    pub(crate) fn frame(&self, reads_calls: bool) -> Option<Frame> {
        let opens = |begin: &[&str]| self.calls.iter().any(|call| begin.contains(&call.marker));
        self.frame.filter(|(begin, _)| reads_calls || !opens(begin))
    }
}

/// How a thought stands in text. The first of each is what the model itself writes.
#[derive(Clone, Copy, Debug)]
pub struct Thought {
    /// What opens it.
    pub open: &'static [&'static str],
    /// What closes it.
    pub close: &'static [&'static str],
    /// Whether it may be opened behind text of an answer. `false` where people write the marker, too: then a thought begins
    /// where an answer does, or behind a thought or a call.
    pub anywhere: bool,
}

/// A marker, and the call behind it.
pub(crate) struct Opener {
    pub(crate) marker: &'static str,
    pub(crate) body: MakeBody,
}

/// Which meaning a marker has.
#[derive(Clone, Copy)]
enum Mark {
    Open,
    Close,
    Call(usize),
    Silent,
    /// The beginning of the answer's frame.
    Frame,
    /// The closing marker of a call that ended before it, or of the frame.
    Late,
}

/// See the file's head.
pub(crate) struct Machine {
    flow: &'static Flow,
    calls: Calls,
    /// Text that nobody took.
    untaken: String,
    body: Option<Box<dyn Body>>,
    /// What the body took and a call did not begin with.
    pending: String,
    in_thought: bool,
    /// Nothing but white space came since the answer, or the thought, began.
    is_fresh: bool,
    /// The last thing was a marker: white space goes with it.
    behind_marker: bool,
    /// The white space here is too long to belong to a marker.
    long_space: bool,
    late: &'static [&'static str],
    reads_calls: bool,
    reads_thoughts: bool,
    is_bare: bool,
}

impl Machine {
    pub(crate) fn new(
        flow: &'static Flow,
        tools: Arc<Tools>,
        reads_calls: bool,
        reads_thoughts: bool,
        in_thought: bool,
    ) -> Machine {
        let in_thought = in_thought && reads_thoughts;
        Machine {
            flow,
            calls: Calls::new(tools),
            untaken: String::new(),
            body: None,
            pending: String::new(),
            in_thought,
            is_fresh: true,
            behind_marker: in_thought,
            long_space: false,
            late: &[],
            reads_calls,
            reads_thoughts,
            is_bare: false,
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        match (&self.body, self.in_thought) {
            (Some(_), _) => Phase::Call,
            (None, true) => Phase::Reasoning,
            (None, false) => Phase::Text,
        }
    }

    pub(crate) fn held(&self) -> usize {
        self.pending.len() + self.untaken.len()
    }

    pub(crate) fn push(&mut self, text: &str, sink: &mut Sink<'_>) {
        self.run(text, false, sink);
    }

    pub(crate) fn finish(&mut self, sink: &mut Sink<'_>) -> Left {
        self.run("", true, sink);
        let phase = self.phase();
        if let Some(body) = self.body.take() {
            // The body wants more, and there is none.
            if self.calls.is_open() {
                self.calls.end(Outcome::Cut, sink);
                // Half a key, or half a marker, of the call.
                self.untaken.clear();
            } else if body.is_pending() {
                self.refuse("", sink);
            }
        }
        let rest = std::mem::take(&mut self.untaken);
        self.give(&rest, sink);
        Left { phase, counts: self.calls.counts }
    }

    fn run(&mut self, text: &str, last: bool, sink: &mut Sink<'_>) {
        let mut all = std::mem::take(&mut self.untaken);
        all.push_str(text);
        let mut at = 0;
        while let Some(taken) = self.turn(&all[at..], last, sink) {
            at += taken;
        }
        all.drain(..at);
        self.untaken = all;
    }

    /// Takes some of the text, or changes its mind about what it is in. `None`: needs more text.
    fn turn(&mut self, text: &str, last: bool, sink: &mut Sink<'_>) -> Option<usize> {
        if self.body.is_some() {
            return self.in_call(text, last, sink);
        }
        if self.behind_marker {
            let space = spaces(text);
            if space > 0 {
                return Some(space);
            }
            self.behind_marker = text.is_empty();
        }
        if text.is_empty() {
            return None;
        }
        if self.is_fresh && !self.in_thought && self.reads_calls && !self.flow.bare.is_empty() {
            let space = spaces(text);
            let char = text[space..].chars().next();
            let bare = self.flow.bare.iter().find(|(first, _)| Some(*first) == char);
            if let (Some((_, body)), true) = (bare, space <= SPACE_BYTES_MAX) {
                self.open(&text[..space], body(), true);
                return Some(space);
            }
        }
        self.in_text(text, last, sink)
    }

    fn open(&mut self, before: &str, body: Box<dyn Body>, is_bare: bool) {
        self.pending.clear();
        self.pending.push_str(before);
        self.body = Some(body);
        self.is_bare = is_bare;
        self.calls.known_only = is_bare || self.in_thought;
        self.late = &[];
    }

    /// All markers that count here.
    fn marks(&self) -> impl Iterator<Item = (&'static str, Mark)> + Clone + 'static {
        let thought = self.flow.thought.filter(|_| self.reads_thoughts);
        let (open, close) = thought.map_or((&[][..], &[][..]), |t| (t.open, t.close));
        let anywhere = thought.is_some_and(|t| t.anywhere) && !self.in_thought;
        let open = if self.is_fresh || anywhere { open } else { &[][..] };
        let frame = self.flow.frame(self.reads_calls).filter(|_| self.is_fresh && !self.in_thought);
        let frame = frame.map_or(&[][..], |(begin, _)| begin);
        let close = if self.in_thought { close } else { &[] };
        let calls = if self.reads_calls { self.flow.calls } else { &[] };
        let calls = calls.iter().enumerate().map(|(at, call)| (call.marker, Mark::Call(at)));
        (open.iter().map(|&marker| (marker, Mark::Open)))
            .chain(close.iter().map(|&marker| (marker, Mark::Close)))
            .chain(calls)
            .chain(self.flow.silent.iter().map(|&marker| (marker, Mark::Silent)))
            .chain(frame.iter().map(|&marker| (marker, Mark::Frame)))
            .chain(self.late.iter().map(|&marker| (marker, Mark::Late)))
    }

    fn in_text(&mut self, text: &str, last: bool, sink: &mut Sink<'_>) -> Option<usize> {
        let marks = self.marks();
        let found = find(text, marks.clone().map(|(marker, _)| marker));
        let until = match found {
            Found::Whole { at, .. } | Found::Half(at) => at,
            Found::None => text.len(),
        };
        let plain = without_spaces(&text[..until]).len();
        if plain > 0 {
            self.long_space = false;
            self.give(&text[..plain], sink);
            return Some(plain);
        }
        // White space, and behind it a marker, half of one, or nothing yet.
        if until > 0 && (self.long_space || until > SPACE_BYTES_MAX) {
            self.long_space = true;
            self.give(&text[..until], sink);
            return Some(until);
        }
        let Found::Whole { which, .. } = found else {
            if last {
                let whole = text[until..].chars().next().map_or(0, char::len_utf8);
                self.give(&text[..until + whole], sink);
                return Some(until + whole);
            }
            return None;
        };
        let (marker, mark) = marks.clone().nth(which)?;
        let end = until + marker.len();
        self.long_space = false;
        match mark {
            Mark::Call(call) => self.open(&text[..end], (self.flow.calls[call].body)(), false),
            Mark::Open | Mark::Close => {
                self.in_thought = matches!(mark, Mark::Open);
                (self.behind_marker, self.is_fresh) = (true, true);
            }
            Mark::Silent => self.behind_marker = true,
            Mark::Frame => {
                self.behind_marker = true;
                self.late = self.flow.frame.map_or(&[], |(_, end)| end);
            }
            // Behind it something new begins, a call without a marker, too.
            Mark::Late => {
                (self.behind_marker, self.is_fresh) = (true, true);
                self.late = &[];
            }
        }
        Some(end)
    }

    fn in_call(&mut self, text: &str, last: bool, sink: &mut Sink<'_>) -> Option<usize> {
        let body = self.body.as_mut()?;
        // No more than may be held.
        let mut room = text.len();
        if body.is_pending() {
            room = room.min(HELD_BYTES_MAX.saturating_sub(self.pending.len()));
            while !text.is_char_boundary(room) {
                room -= 1;
            }
        }
        let (within, is_cut) = (&text[..room], room < text.len());
        let step = if is_cut && room == 0 {
            Step::Need
        } else {
            body.step(within, last && !is_cut, &mut self.calls, sink)
        };
        match step {
            Step::Need if is_cut => {
                self.calls.counts.too_long += 1;
                self.refuse("", sink);
                Some(0)
            }
            Step::Need => None,
            Step::Took(taken) => {
                if body.is_pending() {
                    self.pending.push_str(&text[..taken]);
                } else {
                    self.pending.clear();
                }
                Some(taken)
            }
            Step::Done { taken, closed } => {
                self.late = if closed { &[] } else { body.closes() };
                self.body = None;
                self.pending.clear();
                (self.behind_marker, self.is_fresh) = (true, true);
                Some(taken)
            }
            Step::Not(taken) => {
                self.refuse(&text[..taken], sink);
                Some(taken)
            }
            Step::Broken(taken) => {
                self.late = body.closes();
                self.calls.end(Outcome::Broken, sink);
                let held = body.held().to_string();
                self.body = None;
                self.give(&held, sink);
                self.is_fresh = false;
                Some(taken)
            }
        }
    }

    /// There was no call: what was taken for one is text.
    fn refuse(&mut self, more: &str, sink: &mut Sink<'_>) {
        self.body = None;
        let mut text = std::mem::take(&mut self.pending);
        text.push_str(more);
        // What opens a call in some outputs frames text in others.
        let frame = self.flow.frame.filter(|_| self.is_fresh && !self.in_thought);
        let framed = frame.and_then(|(begin, end)| {
            let text = text.trim_start();
            Some((begin.iter().find_map(|marker| text.strip_prefix(marker))?.trim_start(), end))
        });
        if let Some((within, end)) = framed {
            text = within.to_string();
            (self.behind_marker, self.late) = (text.is_empty(), end);
            if text.is_empty() {
                return;
            }
        } else {
            self.calls.counts.refused += u32::from(!self.is_bare);
        }
        self.is_fresh = false;
        self.give(&text, sink);
    }

    /// Text, or a thought's.
    fn give(&mut self, text: &str, sink: &mut Sink<'_>) {
        if text.is_empty() {
            return;
        }
        self.is_fresh = self.is_fresh && spaces(text) == text.len();
        sink(if self.in_thought { Part::Reasoning(text) } else { Part::Text(text) });
    }
}
