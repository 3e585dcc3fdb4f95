//! Tests for problems of classic PortSentry and for reasons to disable such tools. Each test is named after the correct
//! behaviour. They are black-box tests with real packets between namespaces.

#![cfg(test)]

mod acceptance;
mod flood;
mod forged;
mod innocents;
mod kernel;
mod link_local;
mod links;
mod oracle;
mod seen;
mod services;
