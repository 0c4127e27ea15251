//! `strftime_now`: the time of this service, which is UTC, as Python's `datetime.now().strftime` writes it.

use jiff::civil::DateTime;
use jiff::fmt::strtime;
use jiff::tz::TimeZone;

/// Now, written by a format.
pub fn now(format: &str) -> String {
    let now = jiff::Timestamp::now().to_zoned(TimeZone::UTC).datetime();
    write(format, now)
}

/// Directives that glibc writes in the C locale by others.
const LONG: [(char, &str); 8] = [
    ('c', "%a %b %e %H:%M:%S %Y"),
    ('x', "%m/%d/%y"),
    ('X', "%H:%M:%S"),
    ('r', "%I:%M:%S %p"),
    ('R', "%H:%M"),
    ('T', "%H:%M:%S"),
    ('D', "%m/%d/%y"),
    ('+', "%a %b %e %H:%M:%S  %Y"),
];

/// One directive at a time: what is unknown stays as it is, as with glibc.
fn write(format: &str, time: DateTime) -> String {
    let mut out = String::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        let directive = &rest[at..];
        let flags = directive[1..]
            .find(|c: char| !matches!(c, '-' | '_' | '^' | '#') && !c.is_ascii_digit());
        let Some(kind) = flags.and_then(|at| directive[1 + at..].chars().next()) else {
            out.push_str(directive);
            return out;
        };
        let end = 1 + flags.unwrap_or(0) + kind.len_utf8();
        let (directive, after) = directive.split_at(end);
        rest = after;
        match (kind, LONG.iter().find(|(known, _)| *known == kind)) {
            (_, Some((_, long))) => out.push_str(&write(long, time)),
            ('%', _) => out.push('%'),
            ('n', _) => out.push('\n'),
            ('t', _) => out.push('\t'),
            // A time of no zone.
            ('z' | 'Z', _) => {}
            ('f', _) => out.push_str(&format!("{:06}", time.subsec_nanosecond() / 1000)),
            ('w', _) => out.push_str(&time.weekday().to_sunday_zero_offset().to_string()),
            ('u', _) => out.push_str(&time.weekday().to_monday_one_offset().to_string()),
            ('C', _) => out.push_str(&format!("{:02}", time.year() / 100)),
            ('s', _) => {
                let seconds =
                    time.to_zoned(TimeZone::UTC).map_or(0, |zoned| zoned.timestamp().as_second());
                out.push_str(&seconds.to_string());
            }
            ('U' | 'W', _) => {
                // Weeks begin with the first Sunday, or Monday.
                let weekday = match kind {
                    'U' => time.weekday().to_sunday_zero_offset(),
                    _ => time.weekday().to_monday_zero_offset(),
                };
                let week = (time.day_of_year() + 6 - i16::from(weekday)) / 7;
                out.push_str(&format!("{week:02}"));
            }
            _ => match strtime::format(directive, time) {
                Ok(written) => out.push_str(&written),
                Err(_) => out.push_str(directive),
            },
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Python 3.11 writes on Linux.
    #[test]
    fn directives_are_glibcs() {
        let time = jiff::civil::date(2000, 2, 29).at(12, 34, 56, 7_000);
        for (format, right) in [
            ("%d %b %Y", "29 Feb 2000"),
            ("%A %B %e %y %j %H:%M:%S %I%p %%", "Tuesday February 29 00 060 12:34:56 12PM %"),
            ("%B %-d, %Y", "February 29, 2000"),
            ("%c", "Tue Feb 29 12:34:56 2000"),
            ("%x %X %R %D %T %F", "02/29/00 12:34:56 12:34 02/29/00 12:34:56 2000-02-29"),
            ("%V %G %u %w %U %W %C %h", "09 2000 2 2 09 09 20 Feb"),
            ("%-I %l %k %P %r", "12 12 12 pm 12:34:56 PM"),
            ("%f %z|%Z|%s", "000007 ||951827696"),
            ("%n%t%Q 100%", "\n\t%Q 100%"),
        ] {
            assert_eq!(write(format, time), right, "{format}");
        }
    }
}
