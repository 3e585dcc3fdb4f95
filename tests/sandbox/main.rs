//! What the program gives up, seen from outside, by the kernel's own account.

#![cfg(test)]

#[path = "../lab/mod.rs"]
mod lab;

mod commands;
mod files;
mod lacking;
mod rights;
mod second;
mod trust;
