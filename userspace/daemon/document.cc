// SPDX-License-Identifier: GPL-2.0-only
#include "daemon/document.h"

#include "base/fd.h"
#include "base/size.h"

#include <cerrno>
#include <fcntl.h>

#define TOML_HEADER_ONLY 1
#define TOML_EXCEPTIONS 0
#include <toml++/toml.h>

namespace vql {

using nlohmann::json;

namespace {

constexpr size_t max_file_bytes = 16 << 20;

std::string join(const std::string& path, std::string_view key) {
    return path.empty() ? std::string(key) : path + "." + std::string(key);
}

std::string join(const std::string& path, size_t index) {
    return path + "[" + std::to_string(index) + "]";
}

// "FILE:LINE: PATH: WHAT". What is not in the document (a missing key) has the line of its @table.
error wrong_at(const std::string& path, const std::string& table, const origin& from,
               const std::string& what) {
    std::string text;

    if (!from.file.empty()) {
        auto line = from.lines.find(path);
        if (line == from.lines.end())
            line = from.lines.find(table);
        text = from.file + ":" + std::to_string(line == from.lines.end() ? 1 : line->second) + ": ";
    }
    if (!path.empty())
        text += path + ": ";
    return {text + what};
}

// @path is where @node stands. A date or time becomes null, which no key takes.
json to_json(const toml::node& node, const std::string& path, origin& from) {
    if (const toml::table* table = node.as_table()) {
        json out = json::object();
        for (const auto& [key, value] : *table) {
            const std::string at = join(path, key.str());
            from.lines[at] = key.source().begin.line;
            out[std::string(key.str())] = to_json(value, at, from);
        }
        return out;
    }
    if (const toml::array* array = node.as_array()) {
        json out = json::array();
        for (const toml::node& value : *array) {
            const std::string at = join(path, out.size());
            from.lines[at] = value.source().begin.line;
            out.push_back(to_json(value, at, from));
        }
        return out;
    }
    if (const auto* text = node.as_string())
        return text->get();
    if (const auto* integer = node.as_integer())
        return integer->get();
    if (const auto* boolean = node.as_boolean())
        return boolean->get();
    if (const auto* number = node.as_floating_point())
        return number->get();
    return nullptr;
}

result<std::string> read_file(const std::string& path) {
    const unique_fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    std::string text;
    char part[16384];

    if (!fd)
        return errno_error(path, errno);
    for (;;) {
        const ssize_t n = ::read(fd.get(), part, sizeof(part));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return errno_error(path, errno);
        if (n == 0)
            return text;
        text.append(part, static_cast<size_t>(n));
        if (text.size() > max_file_bytes)
            return error{path + ": larger than 16 MiB, expected a configuration file"};
    }
}

} // namespace

result<document> load_toml(const std::string& file) {
    auto text = read_file(file);
    if (!text)
        return text.failure();

    const toml::parse_result parsed = toml::parse(std::string_view(*text));
    if (!parsed) {
        const toml::parse_error& failure = parsed.error();
        const toml::source_position& begin = failure.source().begin;
        return error{file + ":" + std::to_string(begin.line) + ":" + std::to_string(begin.column) +
                     ": " + std::string(failure.description())};
    }
    document out;
    out.from.file = file;
    out.root = to_json(parsed.table(), "", out.from);
    return out;
}

spot spot::operator[](const char* key) const {
    return {value.at(key), join(path, key), from};
}

spot spot::operator[](size_t index) const {
    return {value.at(index), join(path, index), from};
}

std::string spot::shown() const {
    if (value.is_null())
        return "this value"; // a date or time
    return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

error spot::wrong(const std::string& what) const {
    return wrong_at(path, path, from, what);
}

error spot::wrong(std::string_view key, const std::string& what) const {
    return wrong_at(join(path, key), path, from, what);
}

std::string listed(std::span<const std::string> words) {
    constexpr size_t enough = 16;
    std::string text;

    for (size_t i = 0; i < words.size() && i < enough; i++)
        text += (i ? ", " : "") + words[i];
    return words.size() > enough ? text + ", …" : text;
}

result<void> read_bool(const spot& at, bool& out) {
    if (!at.value.is_boolean())
        return at.wrong("expected true or false");
    out = at.value.get<bool>();
    return {};
}

result<void> read_string(const spot& at, std::string& out) {
    if (!at.value.is_string())
        return at.wrong("expected a string");
    out = at.value.get<std::string>();
    return {};
}

result<void> read_path(const spot& at, size_t most, std::string& out) {
    if (auto read = read_string(at, out); !read)
        return read;
    if (out.empty() || out.find('\0') != out.npos)
        return at.wrong(at.shown() + " is not a path");
    if (out.size() > most)
        return at.wrong("a path of " + std::to_string(out.size()) +
                        " bytes is too long, expected at most " + std::to_string(most));
    return {};
}

// Bytes, as an integer or a string; 0 only where @zero is a size, too.
result<void> read_size(const spot& at, bool zero, uint64_t& out) {
    if (!at.value.is_string() && !at.value.is_number_integer())
        return at.wrong("expected a size: bytes, or a string like \"10G\"");
    auto bytes = parse_size(at.value.is_string() ? at.value.get<std::string>() : at.shown());
    if (!bytes)
        return at.wrong(bytes.failure().text);
    if (!*bytes && !zero)
        return at.wrong("0 is not a size, expected 512 bytes or more");
    out = *bytes;
    return {};
}

} // namespace vql
