//! Replaces a value and tells whether it changed, so that a lasting condition is reported once.

/// Sets `current` to `new`; true if that changes its value.
pub fn update<T: PartialEq>(current: &mut T, new: T) -> bool {
    let has_changed = *current != new;
    *current = new;
    has_changed
}
