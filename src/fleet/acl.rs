//! Formats the users of the server as lines for its ACL file. The ACL guarantees that the host in a key is its author.

use super::key::{Author, HostName, Keyspace};

/// The user of a host, which may read all of the fleet and write only its own reports and notices.
///
/// Publishing and subscribing have separate selectors: a single selector that permits subscribing to all channels would
/// also permit publishing on all of them.
pub fn host(keys: &Keyspace, host: &HostName, user: &str, password: &str) -> String {
    let own = Author::Host(host.clone());
    let (reports, lifts, mine) = (keys.reports(), keys.lifts(), keys.reports_of(host));
    format!(
        "user {user} reset on >{password} resetchannels -@all +ping +scan +getrange +pttl +set +del \
         %R~{reports} %R~{lifts} %W~{mine} (+publish &{}) (+psubscribe &{})",
        keys.channel(&own),
        keys.channels()
    )
}

/// The operator's user, which may read all of the fleet and write only lifts and the notices about them.
pub fn operator(keys: &Keyspace, user: &str, password: &str) -> String {
    let (reports, lifts) = (keys.reports(), keys.lifts());
    format!(
        "user {user} reset on >{password} resetchannels -@all +ping +scan +getrange +pttl +set +del \
         %R~{reports} %RW~{lifts} (+publish &{})",
        keys.channel(&Author::Operator)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_writes_and_publishes_as_itself() {
        let keys = Keyspace::new("lab");
        let line = host(&keys, &HostName::parse("web-1").unwrap(), "web-1", "secret");
        assert_eq!(
            line,
            "user web-1 reset on >secret resetchannels -@all +ping +scan +getrange +pttl +set +del \
             %R~portsentry:lab:ban:* %R~portsentry:lab:lift:* %W~portsentry:lab:ban:web-1:* \
             (+publish &portsentry:lab:news:web-1) (+psubscribe &portsentry:lab:news:*)"
        );
        let line = operator(&keys, "operator", "secret");
        assert!(line.contains("%RW~portsentry:lab:lift:* (+publish &portsentry:lab:news:@operator)"), "{line}");
    }
}
