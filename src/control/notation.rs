//! Writes networks and durations in messages as text in the notation of the configuration, and reads them so.

use std::borrow::Cow;
use std::time::Duration;

use ipnet::IpNet;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serializer};
use serde_with::{DeserializeAs, SerializeAs};

use crate::config::{parse_expiry, parse_network, parse_span};
use crate::types::{Expiry, plain};

/// For `serde_with::As`: the notation of the configuration.
pub(super) struct Notation;

/// Reads text with `parse`, whose error is a sentence with the remedy.
pub(super) fn read<'de, D: Deserializer<'de>, T>(
    text: D,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<T, D::Error> {
    parse(&Cow::<str>::deserialize(text)?).map_err(D::Error::custom)
}

impl SerializeAs<IpNet> for Notation {
    fn serialize_as<S: Serializer>(network: &IpNet, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&plain(*network))
    }
}

impl<'de> DeserializeAs<'de, IpNet> for Notation {
    fn deserialize_as<D: Deserializer<'de>>(text: D) -> Result<IpNet, D::Error> {
        read(text, parse_network)
    }
}

impl SerializeAs<Duration> for Notation {
    fn serialize_as<S: Serializer>(span: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*span))
    }
}

impl<'de> DeserializeAs<'de, Duration> for Notation {
    fn deserialize_as<D: Deserializer<'de>>(text: D) -> Result<Duration, D::Error> {
        read(text, parse_span)
    }
}

impl SerializeAs<Expiry> for Notation {
    fn serialize_as<S: Serializer>(expiry: &Expiry, serializer: S) -> Result<S::Ok, S::Error> {
        match expiry {
            Expiry::Never => serializer.serialize_str("never"),
            Expiry::After(span) => Self::serialize_as(span, serializer),
        }
    }
}

impl<'de> DeserializeAs<'de, Expiry> for Notation {
    fn deserialize_as<D: Deserializer<'de>>(text: D) -> Result<Expiry, D::Error> {
        read(text, parse_expiry)
    }
}
