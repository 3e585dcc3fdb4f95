//! Substitutes `$TARGET$` and the other macros in the hosts.deny line and in command arguments.

use super::BanContext;

/// The name of a macro and its value.
type Macro = (&'static str, fn(&str, &BanContext) -> String);

const MACROS: [Macro; 5] = [
    ("$TARGET$", |target, _| target.to_owned()),
    ("$PORT$", |_, context| context.port.to_string()),
    ("$MODE$", |_, context| context.mode().to_owned()),
    ("$REASON$", |_, context| context.reason().to_owned()),
    ("$EXPIRES$", |_, context| context.until()),
];

/// Replaces the macros in `text` with the values of `context`, in one pass: inserted text is never expanded again.
/// `target` is the blocked address or prefix in the format of the backend.
pub(super) fn expand(text: &str, target: &str, context: &BanContext) -> String {
    let mut whole = String::with_capacity(text.len() + 64);
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        let (before, from) = rest.split_at_checked(at).unwrap_or((rest, ""));
        whole.push_str(before);
        match MACROS.iter().find_map(|(name, value)| Some((from.strip_prefix(name)?, value))) {
            Some((after, value)) => {
                whole.push_str(&value(target, context));
                rest = after;
            }
            None => {
                whole.push('$');
                rest = from.strip_prefix('$').unwrap_or_default();
            }
        }
    }
    whole.push_str(rest);
    whole
}

/// The first word between dollar signs that looks like a macro but is not: probably a typing error.
pub(super) fn unknown(text: &str) -> Option<&str> {
    text.match_indices('$').find_map(|(at, _)| {
        let from = text.get(at..)?;
        let length = from.get(1..)?.find(|c: char| !c.is_ascii_uppercase() && c != '_')?;
        let word = from.get(..length + 2).filter(|word| length > 0 && word.ends_with('$'))?;
        MACROS.iter().all(|(name, _)| *name != word).then_some(word)
    })
}

/// The names of all macros, for an error's text.
pub(super) const NAMES: &str = "$TARGET$, $PORT$, $MODE$, $REASON$ and $EXPIRES$";

#[cfg(test)]
mod tests {
    use super::*;

    fn context(source: &str) -> BanContext {
        BanContext::example(source.parse().unwrap())
    }

    fn expanded(text: &str) -> String {
        expand(text, "192.0.2.7", &context("192.0.2.7"))
    }

    #[test]
    fn every_macro_is_replaced_everywhere() {
        assert_eq!(expanded("$TARGET$"), "192.0.2.7");
        assert_eq!(expanded("a$TARGET$$PORT$b$MODE$"), "a192.0.2.723batcp");
        assert_eq!(expanded("$REASON$ until $EXPIRES$"), "TCP SYN/Normal scan until 2026-01-01T01:00:00Z");
        for (name, _) in MACROS {
            assert!(NAMES.contains(name), "{name}");
        }
    }

    #[test]
    fn unknown_placeholder_stays() {
        for text in ["", "$", "$$", "$TARGET", "TARGET$", "$target$", "$TARGET $", "5 $ und 6 €$"] {
            assert_eq!(expanded(text), text);
        }
        assert_eq!(expanded("$$TARGET$$"), "$192.0.2.7$");
    }

    #[test]
    fn substituted_text_is_not_expanded_again() {
        let context = context("192.0.2.7");
        assert_eq!(expand("$TARGET$", "$PORT$", &context), "$PORT$");
        assert_eq!(expand("$$TARGET$TARGET$", "$PORT$", &context), "$$PORT$TARGET$");
    }

    #[test]
    fn misspelled_macro_is_found() {
        assert_eq!(unknown("x $TARGT$ y"), Some("$TARGT$"));
        assert_eq!(unknown("$TARGET$ $DATE$"), Some("$DATE$"));
        for text in ["", "$", "$$", "$TARGET$", "$HOME/bin", "$1$salt$", "a$b$c", "$é$"] {
            assert_eq!(unknown(text), None, "{text}");
        }
    }
}
