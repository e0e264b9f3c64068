// SPDX-License-Identifier: GPL-2.0-only
// A document of tables: a TOML file or a JSON request, both held as JSON so that one set of rules
// serves both. Rules are tables themselves: a key, how it is read into its struct, whether it must
// be there. An error names the place: "FILE:LINE: disk[0].queue_size: what is wrong".
#pragma once

#include "base/result.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

namespace vql {

// Where values stand: the file, and lines by path. Both are empty for a request.
struct origin {
    std::string file;
    std::map<std::string, unsigned, std::less<>> lines;
};

struct document {
    nlohmann::json root;
    origin from;
};

// A TOML file; an error is about the file or its syntax.
result<document> load_toml(const std::string& file);

// A value and where it stands. Refers to the value and its origin, which outlive it.
struct spot {
    const nlohmann::json& value;
    std::string path; // "disk[0].queue_size"; empty for the whole document
    const origin& from;

    bool has(std::string_view key) const { return value.contains(key); }
    spot operator[](const char* key) const;
    spot operator[](size_t index) const;

    // The value, for an error about it.
    std::string shown() const;
    error wrong(const std::string& what) const;
    // An error about @key, which stands in this table or should.
    error wrong(std::string_view key, const std::string& what) const;
};

// How key @key is read, at its value.
template <class T>
struct field {
    const char* key;
    result<void> (*read)(const spot& at, T& out);
    bool required = false;
};

// "a, b, c", cut short where there are many.
std::string listed(std::span<const std::string> words);

template <class T>
result<void> read_table(const spot& at, std::span<const field<T>> fields, T& out) {
    std::vector<std::string> known;

    if (!at.value.is_object())
        return at.wrong("expected a table");
    for (const field<T>& f : fields)
        known.push_back(f.key);
    for (const auto& item : at.value.items())
        if (std::find(known.begin(), known.end(), item.key()) == known.end())
            return at.wrong(item.key(), "unknown key (known: " + listed(known) + ")");
    for (const field<T>& f : fields) {
        if (!at.has(f.key)) {
            if (f.required)
                return at.wrong(f.key, "missing, it has no default");
            continue;
        }
        if (auto read = f.read(at[f.key], out); !read)
            return read;
    }
    return {};
}

// An array of at most @most tables, each with @fields and then passed to @check, if there is one.
template <class T>
result<void> read_tables(const spot& at, size_t most, std::span<const field<T>> fields,
                         result<void> (*check)(const spot&, const T&), std::vector<T>& out) {
    if (!at.value.is_array())
        return at.wrong("expected an array of tables");
    if (at.value.size() > most)
        return at.wrong(std::to_string(at.value.size()) + " are too many, expected at most " +
                        std::to_string(most));
    for (size_t i = 0; i < at.value.size(); i++) {
        T& item = out.emplace_back();
        if (auto read = read_table(at[i], fields, item); !read)
            return read;
        if (!check)
            continue;
        if (auto valid = check(at[i], item); !valid)
            return valid;
    }
    return {};
}

// Readers: of the type that a key takes, and the range.

result<void> read_bool(const spot& at, bool& out);
result<void> read_string(const spot& at, std::string& out);
// At most @most bytes.
result<void> read_path(const spot& at, size_t most, std::string& out);
// Bytes, as an integer or a string; 0 only where @zero is a size, too.
result<void> read_size(const spot& at, bool zero, uint64_t& out);

// An integer for which @valid holds, which is false from 2^63 up; @expected completes "N is not …".
template <class T, class Rule>
result<void> read_integer(const spot& at, const std::string& expected, Rule valid, T& out) {
    if (!at.value.is_number_integer())
        return at.wrong("expected an integer, " + expected);
    if (!valid(at.value.get<uint64_t>())) // a negative one is 2^63 or more here
        return at.wrong(at.shown() + " is not " + expected);
    out = at.value.get<T>();
    return {};
}

template <class T>
result<void> read_range(const spot& at, uint64_t least, uint64_t most, T& out) {
    return read_integer(
        at, "between " + std::to_string(least) + " and " + std::to_string(most),
        [=](uint64_t n) { return n >= least && n <= most; }, out);
}

// A string that stands for a choice.
template <class T>
struct word {
    const char* text;
    T meaning;
};

template <class T, size_t N>
result<void> read_word(const spot& at, const word<T> (&words)[N], T& out) {
    std::string expected;

    for (const word<T>& w : words) {
        if (at.value == w.text) {
            out = w.meaning;
            return {};
        }
        expected += (expected.empty() ? "\"" : ", \"") + std::string(w.text) + "\"";
    }
    return at.wrong(at.shown() + " is not one of " + expected);
}

} // namespace vql
