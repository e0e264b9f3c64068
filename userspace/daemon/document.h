// SPDX-License-Identifier: GPL-2.0-only
// A document of tables: a TOML file or a JSON request, both held as JSON so that one set of rules
// serves both. Rules are tables themselves: a key, how it is read into its struct, whether it must
// be there. Reading goes on after an error, so that all of them are found at once; each names its
// place: "FILE:LINE: disk[0].queue_size: what is wrong".
#pragma once

#include "base/result.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include <nlohmann/json.hpp>

namespace vql {

// Where values stand: the file, and lines by path. Both are empty for a request.
struct origin {
    std::string file;
    unsigned order = 0; // of this file among those that are read together
    std::map<std::string, unsigned, std::less<>> lines;

    // Of what stands at @path, or else of @table; 1 if that is not there either.
    unsigned line_of(const std::string& path, const std::string& table) const;
};

struct document {
    nlohmann::json root;
    origin from;
};

// Everything that is wrong with documents that are read together, each with its place.
class problems {
  public:
    // How many are kept for showing: those that stand first. The others are counted.
    static constexpr size_t most_shown = 100;

    // What is wrong is either such that nothing can start, or that something it names is not as it
    // should be now (a target that is not there), which concerns one disk and may yet change.
    enum class kind { wrong, pending };

    void add(const origin& from, unsigned line, const std::string& path, const std::string& what,
             kind k = kind::wrong);
    // A file that could not be read at all: @what says all.
    void add_file(const origin& from, unsigned line, const std::string& what);

    bool empty() const { return count_ == 0; }
    // Is there one with which nothing can start?
    bool fatal() const { return wrong_ != 0; }
    // Is one about @path in @from, or about something in it?
    bool about(const origin& from, const std::string& path) const;
    // In the order of files and lines, at most most_shown, then "and N more".
    std::vector<std::string> shown() const;
    // The same as one error of a request.
    error joined() const;

  private:
    void keep(unsigned order, unsigned line, std::string text, kind k);

    using place = std::tuple<unsigned, unsigned, size_t>; // file, line, number
    std::map<place, std::string> kept_;
    std::set<std::pair<unsigned, std::string>> paths_;
    size_t count_ = 0, wrong_ = 0;
};

// A TOML file. False when it cannot be read or has no tables, which is in @found then.
bool load_toml(const std::string& file, document& out, problems& found);

// @root, of tables, arrays, strings, integers and booleans, as text that load_toml() reads as that.
std::string to_toml(const nlohmann::json& root);

// A value and where it stands. Refers to the value, its origin and where errors go, which outlive
// it.
struct spot {
    const nlohmann::json& value;
    std::string path; // "disk[0].queue_size"; empty for the whole document
    const origin& from;
    problems& found;

    bool has(std::string_view key) const { return value.contains(key); }
    // @key is there, and nothing was found wrong with it.
    bool good(std::string_view key) const;
    // Nothing was found wrong here, or in here.
    bool good() const { return !found.about(from, path); }
    spot operator[](const char* key) const;
    spot operator[](size_t index) const;

    // The value, for an error about it.
    std::string shown() const;
    // "FILE:LINE", empty for a request.
    std::string place() const;
    // Something is wrong here, which is noted; returns false, for whoever reads this.
    bool wrong(const std::string& what) const;
    // … with @key, which stands in this table or should.
    bool wrong(std::string_view key, const std::string& what) const;
    // What this names is not as it should be now.
    bool pending(const std::string& what) const;
};

// How key @key is read, at its value. False: it is wrong, and was noted.
template <class T>
struct field {
    const char* key;
    bool (*read)(const spot& at, T& out);
    bool required = false;
};

// "a, b, c", cut short after @most.
std::string listed(std::span<const std::string> words, size_t most = 16);

// All keys of a table, also after one that is wrong. False if one is.
template <class T>
bool read_table(const spot& at, std::span<const field<T>> fields, T& out) {
    std::vector<std::string> known;
    bool good = true;

    if (!at.value.is_object())
        return at.wrong("expected a table");
    for (const field<T>& f : fields)
        known.push_back(f.key);
    for (const auto& item : at.value.items())
        if (std::find(known.begin(), known.end(), item.key()) == known.end())
            good = at.wrong(item.key(), "unknown key (known: " + listed(known, known.size()) + ")");
    for (const field<T>& f : fields) {
        if (at.has(f.key))
            good &= f.read(at[f.key], out);
        else if (f.required)
            good = at.wrong(f.key, "missing, it has no default");
    }
    return good;
}

// An array of at most @most tables, each with @fields and then passed to @check, if there is one:
// also one that is wrong, so @check looks at what is good(). Adds one to @out for each.
template <class T>
bool read_tables(const spot& at, size_t most, std::span<const field<T>> fields,
                 bool (*check)(const spot&, const T&), std::vector<T>& out) {
    bool good = true;

    if (!at.value.is_array())
        return at.wrong("expected an array of tables");
    if (at.value.size() > most)
        return at.wrong(std::to_string(at.value.size()) + " are too many, expected at most " +
                        std::to_string(most));
    for (size_t i = 0; i < at.value.size(); i++) {
        const spot item = at[i];
        good &= read_table(item, fields, out.emplace_back());
        if (check && item.value.is_object())
            good &= check(item, out.back());
    }
    return good;
}

// Readers: of the type that a key takes, and the range.

bool read_bool(const spot& at, bool& out);
bool read_string(const spot& at, std::string& out);
// Absolute, since who reads it has another working directory than who wrote it; at most @most
// bytes.
bool read_path(const spot& at, size_t most, std::string& out);
// Bytes, as an integer or a string; 0 only where @zero is a size, too.
bool read_size(const spot& at, bool zero, uint64_t& out);

// An integer for which @valid holds, which is false from 2^63 up; @expected completes "N is not …".
template <class T, class Rule>
bool read_integer(const spot& at, const std::string& expected, Rule valid, T& out) {
    if (!at.value.is_number_integer())
        return at.wrong("expected an integer, " + expected);
    if (!valid(at.value.get<uint64_t>())) // a negative one is 2^63 or more here
        return at.wrong(at.shown() + " is not " + expected);
    out = at.value.get<T>();
    return true;
}

template <class T>
bool read_range(const spot& at, uint64_t least, uint64_t most, T& out) {
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
bool read_word(const spot& at, const word<T> (&words)[N], T& out) {
    std::string expected;

    for (const word<T>& w : words) {
        if (at.value == w.text) {
            out = w.meaning;
            return true;
        }
        expected += (expected.empty() ? "\"" : ", \"") + std::string(w.text) + "\"";
    }
    return at.wrong(at.shown() + " is not one of " + expected);
}

} // namespace vql
