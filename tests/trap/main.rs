//! What the kernel does beyond the sets of single sources: whole networks, against the program as a process in a lab of
//! network namespaces.

#[cfg(test)]
#[path = "../lab/mod.rs"]
mod lab;

#[cfg(test)]
mod counting;
#[cfg(test)]
mod datagrams;
#[cfg(test)]
mod innocents;
#[cfg(test)]
mod lacking;
#[cfg(test)]
mod networks;
