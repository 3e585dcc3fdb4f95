# What cargo says to CycloneDX; called by sbom.sh. Ends with an error where a crate is not from crates.io, has no checksum or
# names no licence: then the list would not be true.

# `clap v4.6.7 (proc-macro) (*)`
def crate: capture("^(?<name>[A-Za-z0-9_-]+) v(?<version>[^ ]+)") | "\(.name)@\(.version)";
def lines: split("\n") | map(select(. != ""));
# In a purl, `+` would be a space.
def purl: "pkg:cargo/" + gsub("\\+"; "%2B");
def value($key): capture("(?m)^\($key) = \"(?<value>[^\"]*)\"$").value;
def field($key): capture("(?m)^\($key): (?<value>.*)$").value;

($metadata[0].packages | map({key: "\(.name)@\(.version)", value: .}) | from_entries) as $packages
| ($lock | split("[[package]]")[1:] | map({key: "\(value("name"))@\(value("version"))", value: .}) | from_entries) as $locked
| ($linked | lines | map({key: crate, value: true}) | from_entries) as $linked
# `cargo tree` prints each crate with its depth: `above` is the stack of its parents, `needs` its dependencies.
| (reduce ($tree | lines | map(capture("^(?<depth>[0-9]+) (?<rest>.*)$")) | .[]) as $line (
    {above: [], needs: {}};
    ($line.depth | tonumber) as $depth
    | ($line.rest | crate) as $crate
    | .needs[$crate] += []
    | if $depth > 0 then .needs[.above[$depth - 1]] += [$crate] else .root = $crate end
    | .above = .above[:$depth] + [$crate]
)) as {$needs, $root}
| "sqlite@\($sqlite)" as $database
| ($rustc | field("release")) as $release
| "rust-std@\($release)" as $std
| ($needs
    | map_values(unique)
    | to_entries
    | map(if (.key | startswith("libsqlite3-sys@")) then .value += [$database] elif .key == $root then .value += [$std] else . end)
    | from_entries) as $needs
| def licences: if . == null then error("no licence") else [{expression: gsub(" */ *"; " OR ")}] end;
def component($crate):
    $packages[$crate] as $package
    | ($locked[$crate] // error("\($crate) is not in Cargo.lock")) as $entry
    | if $package.source != "registry+https://github.com/rust-lang/crates.io-index" then error("\($crate) is not from crates.io") else . end
    | {
        type: "library",
        "bom-ref": $crate,
        name: $package.name,
        version: $package.version,
        scope: (if $linked[$crate] then "required" else "excluded" end),
        hashes: [{alg: "SHA-256", content: ($entry | value("checksum"))}],
        licenses: ($package.license | licences),
        purl: ($crate | purl),
    }
    + if $package.repository then {externalReferences: [{type: "vcs", url: $package.repository}]} else {} end;
{
    bomFormat: "CycloneDX",
    specVersion: "1.5",
    version: 1,
    metadata: {
        timestamp: ($time | todate),
        lifecycles: [{phase: "build"}],
        component: {
            type: "application",
            "bom-ref": $root,
            name: $packages[$root].name,
            version: $packages[$root].version,
            description: $packages[$root].description,
            licenses: ($packages[$root].license | licences),
            purl: "pkg:generic/\($root)",
        },
        properties: [{name: "target", value: ($rustc | field("host"))}],
    },
    components: (
        [$needs | keys[] | select(. != $root) | component(.)]
        + [{
            type: "library",
            "bom-ref": $std,
            name: "rust-std",
            version: $release,
            description: "The standard library of Rust, at commit \($rustc | field("commit-hash"))",
            scope: "required",
            licenses: ("MIT OR Apache-2.0" | licences),
            purl: "pkg:generic/\($std)",
            externalReferences: [{type: "vcs", url: "https://github.com/rust-lang/rust"}],
        }, {
            type: "library",
            "bom-ref": $database,
            name: "sqlite",
            version: $sqlite,
            description: "SQLite, in C, inside libsqlite3-sys",
            scope: "required",
            licenses: ("blessing" | licences),
            cpe: "cpe:2.3:a:sqlite:sqlite:\($sqlite):*:*:*:*:*:*:*",
            purl: "pkg:generic/\($database)",
            externalReferences: [{type: "website", url: "https://www.sqlite.org/"}],
        }]
        | sort_by(."bom-ref")
    ),
    dependencies: ([$needs | to_entries[] | {ref: .key, dependsOn: (.value | unique)}] + [{ref: $database, dependsOn: []}, {ref: $std, dependsOn: []}] | sort_by(.ref)),
}
