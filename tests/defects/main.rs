//! What went wrong in classic PortSentry, and what people switched such tools off for: each is a test here, named for what
//! holds instead. Black-box, on real packets between namespaces.

#[cfg(test)]
#[path = "../lab/mod.rs"]
mod lab;

#[cfg(test)]
mod flood;
#[cfg(test)]
mod forged;
#[cfg(test)]
mod innocents;
#[cfg(test)]
mod kernel;
#[cfg(test)]
mod links;
#[cfg(test)]
mod seen;
#[cfg(test)]
mod services;
