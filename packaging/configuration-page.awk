# docs/configuration.md to portsentry.toml(5), in mdoc: awk -f configuration-page.awk docs/portsentry.8 docs/configuration.md
# Knows the little Markdown that is written there: headings, paragraphs, one level of lists, tables, fenced text. The day
# comes from the other page, so that the same sources always give the same page. Under LC_ALL=C, for the same reason.

FILENAME ~ /\.8$/ {
    if ($1 == ".Dd") day = $0
    next
}

FNR == 1 {
    print ".\\\" portsentry.toml(5), made of docs/configuration.md by packaging/configuration-page.awk: change those, then `make man`."
    print day "\n.Dt PORTSENTRY.TOML 5\n.Os"
    print ".Sh NAME\n.Nm portsentry.toml\n.Nd settings of portsentry"
    print ".Sh DESCRIPTION"
    headed = 1
    next
}

/^```/ { flush_text(); fenced = !fenced; print fenced ? ".Bd -literal -offset 2n" : ".Ed"; fresh = !fenced; next }
fenced { print escape($0); next }

/^\|/ { flush_text(); row($0); next }
in_table { print ".El"; in_table = 0; fresh = 1 }

/^#/ {
    flush_text(); end_list()
    macro = /^###/ ? ".Ss " : ".Sh "
    sub(/^#+ */, "")
    print macro (macro == ".Sh " ? toupper($0) : $0)
    headed = 1
    next
}

/^- / {
    flush_text()
    if (!in_list) { print ".Bl -bullet"; in_list = 1 }
    print ".It"
    text = substr($0, 3)
    next
}

/^$/ { flush_text(); fresh = 1; next }
/^  / && in_list {
    if (text == "" && fresh) { print ".Pp"; fresh = 0 }
    text = text (text == "" ? "" : " ") substr($0, 3)
    next
}
{
    if (text == "") {
        end_list()
        if (fresh && !headed) print ".Pp"
        fresh = headed = 0
    }
    text = text (text == "" ? "" : " ") $0
}

END {
    flush_text(); end_list()
    if (in_table) print ".El"
    print ".Sh FILES\n.Bl -tag -width Ds"
    print ".It Pa /etc/portsentry/portsentry.toml\nThe settings."
    print ".It Pa /usr/share/doc/portsentry-nft/examples\nA file with every key at its built-in value, and a minimal one."
    print ".El\n.Sh SEE ALSO\n.Xr portsentry 8"
}

# A row of a table: the first one names the columns, the second one is the line under it.
function row(line,   cell, count, i) {
    gsub(/\\\|/, "\001", line)
    count = split(line, cell, /\|/)
    for (i = 2; i < count; i++) { gsub(/^ +| +$/, "", cell[i]); gsub(/\001/, "|", cell[i]) }
    headed = 0
    if (!in_table) {
        settings = cell[2] == "key"
        print ".Bl -tag -width Ds"
        in_table = 1
        return
    }
    if (cell[2] ~ /^-+$/) return
    print ".It " item(cell[2])
    if (settings) {
        say("Values: " cell[3] (cell[4] == "" ? "; none is built in." : "; built in: " cell[4] "."))
        print ".br"
        say(cell[5])
    } else {
        for (i = 3; i < count; i++) if (cell[i] != "") say(cell[i])
    }
}

# The head of an entry, whole: mdoc reads words of two letters in it as macros.
function item(words) {
    gsub(/`/, "", words)
    return "Li " escape(words)
}

function end_list() {
    if (in_list) { print ".El"; fresh = 1 }
    in_list = 0
}

function flush_text() {
    if (text != "") say(text)
    text = ""
}

# Running text: code and strong words in bold, links by their names, and every sentence on lines of its own.
function say(words,   out, part, count, i, piece) {
    while (match(words, /\[[^]]*\]\([^)]*\)/)) {
        piece = substr(words, RSTART + 1, RLENGTH - 2)
        sub(/\]\(.*/, "", piece)
        words = substr(words, 1, RSTART - 1) piece substr(words, RSTART + RLENGTH)
    }
    count = split(words, part, /`/)
    out = ""
    for (i = 1; i <= count; i++) {
        if (i % 2) {
            piece = escape_plain(part[i])
            gsub(/\*\*/, "\002", piece)
            while (sub(/\002/, "\\fB", piece)) sub(/\002/, "\\fR", piece)
            out = out piece
        } else {
            out = out "\\fB" escape(part[i]) "\\fR"
        }
    }
    lay(out)
}

# Lines of at most 80 bytes, each sentence begun on a new one.
function lay(words,   word, count, i, line) {
    count = split(words, word, / +/)
    line = ""
    for (i = 1; i <= count; i++) {
        if (line != "" && (length(line) + 1 + length(word[i]) > 78)) { put(line); line = "" }
        line = line (line == "" ? "" : " ") word[i]
        if (word[i] ~ /[.?!]\)?(\\fR)?$/) { put(line); line = "" }
    }
    if (line != "") put(line)
}

function put(line) { headed = 0; print (line ~ /^[.']/ ? "\\&" : "") line }

function escape_plain(words) { gsub(/\\/, "\\e", words); gsub(/…/, "...", words); return words }

function escape(words) {
    gsub(/\\/, "\\e", words)
    gsub(/-/, "\\-", words)
    return words ~ /^[.']/ ? "\\&" words : words
}
