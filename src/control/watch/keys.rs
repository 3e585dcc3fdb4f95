//! What the terminal sends to [`Key`]s, and what an operator wants by them. Pure.

use ratatui::crossterm::event::{Event, KeyCode, KeyEventKind, KeyModifiers};

use crate::control::protocol::Request;

/// What was pressed, or that the terminal has another size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Up,
    Down,
    PageUp,
    PageDown,
    First,
    Last,
    Enter,
    Escape,
    Erase,
    /// Control-C, wherever one is.
    Interrupt,
    Char(char),
    Resized,
}

/// What is to be done about a key outside of the view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Quit,
    Ask(Request),
}

/// The key in what the terminal sent, if it is one that means anything.
pub(super) fn read(event: &Event) -> Option<Key> {
    let key = match event {
        Event::Key(key) if key.kind != KeyEventKind::Release => key,
        Event::Resize(..) => return Some(Key::Resized),
        _ => return None,
    };
    match (key.code, key.modifiers) {
        (KeyCode::Char('c'), KeyModifiers::CONTROL) => Some(Key::Interrupt),
        (KeyCode::Char(c), KeyModifiers::NONE | KeyModifiers::SHIFT) => Some(Key::Char(c)),
        (KeyCode::Up, _) => Some(Key::Up),
        (KeyCode::Down, _) => Some(Key::Down),
        (KeyCode::PageUp, _) => Some(Key::PageUp),
        (KeyCode::PageDown, _) => Some(Key::PageDown),
        (KeyCode::Home, _) => Some(Key::First),
        (KeyCode::End, _) => Some(Key::Last),
        (KeyCode::Enter, _) => Some(Key::Enter),
        (KeyCode::Esc, _) => Some(Key::Escape),
        (KeyCode::Backspace, _) => Some(Key::Erase),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use ratatui::crossterm::event::KeyEvent;

    use super::*;

    #[test]
    fn keys_are_read_once_and_chords_are_no_letters() {
        let key = |code, modifiers| read(&Event::Key(KeyEvent::new(code, modifiers)));
        assert_eq!(key(KeyCode::Char('u'), KeyModifiers::NONE), Some(Key::Char('u')));
        assert_eq!(key(KeyCode::Char('?'), KeyModifiers::SHIFT), Some(Key::Char('?')));
        assert_eq!(key(KeyCode::Char('u'), KeyModifiers::ALT), None);
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::CONTROL), Some(Key::Interrupt));
        let release = KeyEvent { kind: KeyEventKind::Release, ..KeyEvent::from(KeyCode::Char('u')) };
        assert_eq!(read(&Event::Key(release)), None);
        assert_eq!(read(&Event::Resize(40, 20)), Some(Key::Resized));
    }
}
