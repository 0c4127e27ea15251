//! The level of a line that a child wrote: its own lines say it, `<6>text`, as sd-daemon(3) has it; a library's do not.
//!
//! A line has a level and a text, no fields: the fields of the daemon's own events are fixed when it is compiled, so there
//! is nothing that a child's could become. Children say numbers in words.
//!
//! Owns: the numbers. Must never: guess a level from words.

use tracing::Level;

/// The number that stands for a level at the beginning of a line. sd-daemon(3) ends at 7; 8 is ours.
pub fn number(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG => 7,
        Level::TRACE => 8,
    }
}

/// Reads a child's lines.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    in_panic: bool,
}

impl Lines {
    /// The line without its level, and the level. A line without one is at info, or goes on with a panic, which has
    /// several.
    pub(crate) fn read<'a>(&mut self, line: &'a str) -> (&'a str, Level) {
        let own = line.strip_prefix('<').and_then(|rest| rest.split_once('>'));
        if let Some((level, text)) = own.and_then(|(number, text)| Some((known(number)?, text))) {
            self.in_panic = false;
            return (text, level);
        }
        self.in_panic |=
            line.trim_start().starts_with("thread '") && line.contains(" panicked at ");
        (line, if self.in_panic { Level::ERROR } else { Level::INFO })
    }
}

fn known(text: &str) -> Option<Level> {
    let all = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE];
    all.into_iter().find(|&level| text.parse() == Ok(number(level)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_keep_the_level_that_the_worker_gave_them() {
        let mut lines = Lines::default();
        let mut read = |line| lines.read(line);
        assert_eq!(read("a library's words"), ("a library's words", Level::INFO));
        assert_eq!(read("ERROR of a library"), ("ERROR of a library", Level::INFO));
        assert_eq!(read("<4>slow disk disk=1"), ("slow disk disk=1", Level::WARN));
        assert_eq!(read("a library again"), ("a library again", Level::INFO));
        assert_eq!(read("<7>step"), ("step", Level::DEBUG));
        assert_eq!(read("<9>step"), ("<9>step", Level::INFO));
        let panic = "thread 'rank-0' (77) panicked at src/x.rs:1:2:";
        assert_eq!(read(panic), (panic, Level::ERROR));
        assert_eq!(read("index out of bounds").1, Level::ERROR);
        assert_eq!(read("<6>drained; exiting").1, Level::INFO);
        assert_eq!(read("a library's words").1, Level::INFO);
    }
}
