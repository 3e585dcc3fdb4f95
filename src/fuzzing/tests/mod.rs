//! The corpus: what is made of it, and how it is made.

mod corpus;
mod record;
