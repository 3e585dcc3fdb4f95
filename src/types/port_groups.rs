//! Lists the related TCP ports, of which each group counts as one port.

/// Groups of TCP ports that one client tries together: SMTP, POP, IMAP, submission and ManageSieve (Thunderbird,
/// Outlook and K-9 guess all of them); LPD, IPP and raw printing; HTTP and HTTPS.
pub const PORT_GROUPS: [&[u16]; 3] = [&[25, 110, 143, 465, 587, 993, 995, 4190], &[515, 631, 9100], WEB_PORTS];

/// HTTP and HTTPS. A browser tries one of them at each visit, and the other one if the first is refused.
pub const WEB_PORTS: &[u16] = &[80, 443];
