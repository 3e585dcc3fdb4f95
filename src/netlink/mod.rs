//! (room)
pub mod host;
pub mod resolvers;
pub mod sock_diag;
