//! Text that comes from files and peers, fit for a terminal.

use std::fmt::{self, Write as _};

/// Shows text on one line: control characters, which may move the cursor, come out escaped.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Escaped<'a>(pub(crate) &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            if character.is_control() {
                write!(f, "{}", character.escape_default())?;
            } else {
                f.write_char(character)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped_and_all_else_is_shown_as_it_is() {
        for (text, shown) in [
            ("größe/日本.hxz", "größe/日本.hxz"),
            ("\x1b[31mred\n\t\u{9b}", r"\u{1b}[31mred\n\t\u{9b}"),
            ("\x7f\0", r"\u{7f}\u{0}"),
        ] {
            assert_eq!(Escaped(text).to_string(), shown);
        }
    }
}
