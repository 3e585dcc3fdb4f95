//! Builds and uses the corpus.

mod corpus;
mod record;
