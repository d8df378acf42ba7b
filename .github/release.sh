#!/bin/sh
# Collects the release files of all systems in one folder, with one manifest of updates and one list of
# checksums, and with a key signs them by minisign.
#
#   release.sh PARTS FOLDER [KEY]
#
# PARTS has the files of `cargo xtask dist`, those of several systems in one directory for each, or those that
# this script has collected. FOLDER must not exist. KEY is the secret key; if it has a password, minisign asks
# for it once for each signature. Needs jq, and minisign with a key.
set -eu
parts=$1 folder=$2 key=${3-}

mkdir "$folder"
# A file that is the same on every system is taken once.
find "$parts" -type f ! -name SHA256SUMS ! -name manifest.json ! -name '*.minisig' | sort |
    while read -r file; do
        if [ ! -e "$folder/${file##*/}" ]; then cp "$file" "$folder/"; fi
    done

# FILE COMMENT: the comment is signed too.
sign() {
    if [ -n "$key" ]; then minisign -S -s "$key" -m "$1" -x "$1.minisig" -t "$2" <"$terminal"; fi
}
# The password is read from here, and not from the list of programs.
terminal=/dev/null
if [ -t 0 ]; then terminal=$(tty); fi

# Each system has made a manifest with its own programs.
find "$parts" -type f -name manifest.json -exec cat {} + | jq --slurp '
    (map(.releases[0].version) | unique) as $versions
    | if ($versions | length) != 1 then error("the parts are of versions \($versions)") else . end
    | { v: .[0].v, releases: [.[0].releases[0] + { artifacts: map(.releases[0].artifacts[]) }] }
' >"$folder/manifest.json"

# Agents compare version, os and arch in the comment with what they asked for.
jq --raw-output '.releases[0] | .version as $version | .artifacts[] | "\(.artifact) \($version) \(.os) \(.arch)"' \
    "$folder/manifest.json" >"$folder/programs"
while read -r name version os arch; do
    sign "$folder/$name" "ai-agent $version $os $arch"
    if [ -z "$key" ]; then continue; fi
    jq --arg name "$name" --rawfile signature "$folder/$name.minisig" '
        (.releases[0].artifacts[] | select(.artifact == $name)).minisig = $signature
    ' "$folder/manifest.json" >"$folder/manifest.json.new"
    mv "$folder/manifest.json.new" "$folder/manifest.json"
done <"$folder/programs"
rm "$folder/programs"

(cd "$folder" && find . -type f ! -name '*.minisig' ! -name SHA256SUMS | sed 's,^\./,,' | sort |
    xargs sha256sum >SHA256SUMS)
# The list stands for the other files. Its comment must not be one that agents accept for a program.
sign "$folder/SHA256SUMS" "checksums of the release files"
