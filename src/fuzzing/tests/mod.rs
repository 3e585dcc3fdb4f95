//! Tests the fuzz targets with their corpus, and records the corpus.

mod corpus;
mod record;
