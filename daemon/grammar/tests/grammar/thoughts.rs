//! A thought before what follows a grammar.

use minisgl_grammar::{Limits, Outline};
use minisgl_proto::{Grammar, Guided, Thought};

use crate::common::{END_OF_THOUGHT, SIZE, STOP, THINK, compiler};

fn outline(grammar: Option<Grammar>, thought: Thought) -> Outline {
    let thought = Some(thought);
    let guided = Guided { grammar, thought, field: "f".into() };
    compiler(Limits::default()).outline(&guided).unwrap()
}

fn ab() -> Option<Grammar> {
    Some(Grammar::Choice(vec!["ab".into()]))
}

fn close() -> Vec<String> {
    vec!["</think>".into(), "##".into()]
}

fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

fn allowed(outline: &mut Outline, output: &[u32]) -> Vec<u32> {
    let mut mask = vec![u32::MAX; SIZE.div_ceil(32)];
    outline.narrow(output, &mut mask).unwrap();
    (0..SIZE as u32).filter(|&token| mask[token as usize / 32] >> (token % 32) & 1 == 1).collect()
}

const NEWLINE: u32 = b'\n' as u32;
const AB: u32 = 268;

#[test]
fn a_grammar_begins_behind_the_thought() {
    let mut state = outline(ab(), Thought { close: close(), ..Thought::default() });
    let free: Vec<u32> = (0..SIZE as u32).filter(|token| !STOP.contains(token)).collect();
    let mut output = vec![THINK];
    output.extend(bytes("any # thing"));
    for at in 0..=output.len() {
        assert_eq!(allowed(&mut state, &output[..at]), free, "no output ends inside of it");
    }
    output.push(END_OF_THOUGHT);
    assert_eq!(allowed(&mut state, &output), [NEWLINE, b'a'.into(), AB]);
    output.push(NEWLINE);
    assert_eq!(allowed(&mut state, &output), [u32::from(b'a'), AB], "one line break");
    output.push(AB);
    assert_eq!(allowed(&mut state, &output), STOP);
}

/// A marker's letters are tokens of their own, or stand in longer ones.
#[test]
fn a_marker_is_found_however_its_letters_are_divided() {
    for thought in ["x##", "x#x##", "x</think>", "</thin</think>"] {
        let mut state = outline(ab(), Thought { close: close(), ..Thought::default() });
        let mut output = bytes(thought);
        assert_eq!(allowed(&mut state, &output), [NEWLINE, b'a'.into(), AB], "{thought}");
        output.push(b'a'.into());
        assert_eq!(allowed(&mut state, &output), bytes("b"), "{thought}");
    }
}

#[test]
fn a_thought_may_be_opened_or_not() {
    let thought = Thought { open: vec![THINK], close: close(), budget: None };
    let mut state = outline(ab(), thought.clone());
    assert_eq!(allowed(&mut state, &[]), [u32::from(b'a'), THINK, AB]);
    assert_eq!(allowed(&mut state, &bytes("a")), bytes("b"), "it was not");
    let mut state = outline(ab(), thought);
    assert_eq!(allowed(&mut state, &[THINK]).len(), SIZE - STOP.len());
    let output = [vec![THINK], bytes("b"), vec![END_OF_THOUGHT]].concat();
    assert_eq!(allowed(&mut state, &output), [NEWLINE, b'a'.into(), AB]);
}

#[test]
fn a_thought_that_is_over_its_budget_is_closed() {
    let closing = vec![NEWLINE, END_OF_THOUGHT];
    for (grammar, then) in [(ab(), 3), (None, SIZE)] {
        for open in [Vec::new(), vec![THINK]] {
            let budget = Some((2, closing.clone()));
            let mut output = open.clone();
            let mut state = outline(grammar.clone(), Thought { open, close: close(), budget });
            output.extend(bytes("xy"));
            assert_eq!(allowed(&mut state, &output), [NEWLINE]);
            output.push(NEWLINE);
            assert_eq!(allowed(&mut state, &output), [END_OF_THOUGHT]);
            output.push(END_OF_THOUGHT);
            assert_eq!(allowed(&mut state, &output).len(), then);
        }
    }
}

#[test]
fn white_space_before_a_thought_goes_with_it() {
    let budget = Some((1, vec![END_OF_THOUGHT]));
    let mut state = outline(None, Thought { open: vec![THINK], close: close(), budget });
    let output = [bytes("\n "), vec![THINK], bytes("x")].concat();
    assert_eq!(allowed(&mut state, &output), [END_OF_THOUGHT]);
}

/// As after a preemption.
#[test]
fn an_outline_follows_from_the_output_alone() {
    let budget = Some((3, vec![END_OF_THOUGHT]));
    let make =
        || outline(ab(), Thought { open: vec![THINK], close: close(), budget: budget.clone() });
    let output = [vec![THINK], bytes("xyz"), vec![END_OF_THOUGHT, NEWLINE], bytes("ab")].concat();
    let mut step_by_step = make();
    for at in 0..=output.len() {
        let may = allowed(&mut step_by_step, &output[..at]);
        let mut anew = make();
        anew.catch_up(&output[..at]).unwrap();
        assert_eq!(allowed(&mut anew, &output[..at]), may, "{at}");
    }
    assert_eq!(allowed(&mut step_by_step, &output[..2]), allowed(&mut make(), &output[..2]));
}
