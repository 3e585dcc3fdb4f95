//! Defines the macro for the tables of the configuration.

/// Defines the struct of a table and its built-in values. A line without a function is a nested table.
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
                // Built once: if a long list contains a mistake, the configuration is read once for each of its items.
                static BUILTIN: LazyLock<$table> = LazyLock::new(|| $table { $($key: $builtin),* });
                BUILTIN.clone()
            }
        }
    };
}

pub(super) use table;
