//! The macro that defines the tables of the configuration.

/// Defines the struct of a table, and its built-in values. A line without a function is a table in this table.
macro_rules! table {
    ($(#[$about:meta])* $table:ident {
        $($(#[$note:meta])* $key:ident: $type:ty = $builtin:expr $(, $read:literal)?;)*
    }) => {
        $(#[$about])*
        #[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $table {
            $($(#[$note])* $(#[serde(deserialize_with = $read)])? pub $key: $type,)*
        }

        impl Default for $table {
            fn default() -> Self {
                // Made once: where a long list has a mistake, a configuration is read for each of its items.
                static BUILTIN: LazyLock<$table> = LazyLock::new(|| $table { $($key: $builtin),* });
                BUILTIN.clone()
            }
        }
    };
}

pub(super) use table;
