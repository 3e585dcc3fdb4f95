//! Provides a bounded, lock-free queue between threads that uses little memory while it is short: most of its memory is
//! allocated on first use. Items of one producer are received in order.

use std::sync::OnceLock;

use crossbeam_queue::ArrayQueue;

/// Capacity that is allocated at the start. A new queue writes to all of its slots, which makes them resident in
/// memory.
const INITIAL_LEN: usize = 256;

#[derive(Debug)]
pub struct LazyQueue<T> {
    first: ArrayQueue<T>,
    /// Items that arrived while `first` was full. While `rest` contains any item, no item is added to `first`, so that
    /// all items in `first` are older.
    rest: OnceLock<ArrayQueue<T>>,
    /// The capacity of `rest`.
    more: usize,
}

impl<T> LazyQueue<T> {
    /// A queue for `length` items, at least one.
    pub fn new(length: usize) -> Self {
        let first = length.clamp(1, INITIAL_LEN);
        Self { first: ArrayQueue::new(first), rest: OnceLock::new(), more: length.saturating_sub(first) }
    }

    /// Appends `item`; returns it if the queue is full. Allocates at most once.
    pub fn push(&self, item: T) -> Result<(), T> {
        if let Some(rest) = self.rest.get().filter(|rest| !rest.is_empty()) {
            return rest.push(item);
        }
        match self.first.push(item) {
            Err(item) if self.more > 0 => self.rest.get_or_init(|| ArrayQueue::new(self.more)).push(item),
            done => done,
        }
    }

    /// Removes and returns the oldest item.
    pub fn pop(&self) -> Option<T> {
        self.first.pop().or_else(|| {
            let rest = self.rest.get().filter(|rest| !rest.is_empty())?;
            // Since the first look the producer may have filled both, `first` with the older items.
            self.first.pop().or_else(|| rest.pop())
        })
    }

    pub fn len(&self) -> usize {
        self.first.len() + self.rest.get().map_or(0, ArrayQueue::len)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_returns_items_beyond_capacity() {
        for length in [1, 2, INITIAL_LEN, INITIAL_LEN + 1, 1_000] {
            let queue = LazyQueue::new(length);
            assert!((0..length).all(|item| queue.push(item).is_ok()));
            assert_eq!((queue.push(length), queue.len()), (Err(length), length));
            assert!((0..length).all(|item| queue.pop() == Some(item)) && queue.is_empty());
        }
    }

    #[test]
    fn queue_keeps_order_under_removal() {
        let queue = LazyQueue::new(2 * INITIAL_LEN);
        let (mut put, mut taken) = (0, 0);
        // Fills and empties the queue repeatedly, across both parts and back.
        for step in 0..50_000_usize {
            if step / 700 % 2 == 0 || step % 3 == 0 {
                put += usize::from(queue.push(put).is_ok());
            } else if let Some(item) = queue.pop() {
                assert_eq!(item, taken);
                taken += 1;
            }
        }
        while let Some(item) = queue.pop() {
            assert_eq!(item, taken);
            taken += 1;
        }
        assert!(put == taken && put > 10_000, "{put} and {taken}");
    }

    #[test]
    fn queue_keeps_order_of_each_thread() {
        let queue = LazyQueue::new(600);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for mut item in 0..200_000_u32 {
                    while let Err(back) = queue.push(item) {
                        item = back;
                        std::thread::yield_now();
                    }
                }
            });
            let mut next = 0;
            while next < 200_000 {
                match queue.pop() {
                    Some(item) => {
                        assert_eq!(item, next);
                        next += 1;
                    }
                    None => std::thread::yield_now(),
                }
            }
        });
    }
}
