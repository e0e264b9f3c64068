// SPDX-License-Identifier: GPL-2.0-only
#include "daemon/document.h"

#include "base/fd.h"
#include "base/size.h"

#include <cerrno>
#include <fcntl.h>
#include <sstream>
#include <sys/stat.h>

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
    // A FIFO would wait for its writer.
    const unique_fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    struct stat st {};
    std::string text;
    char part[16384];

    if (!fd)
        return errno_error(path, errno);
    if (fstat(fd.get(), &st) < 0)
        return errno_error(path, errno);
    if (S_ISFIFO(st.st_mode) || S_ISSOCK(st.st_mode))
        return error{path + ": a FIFO or socket, expected a configuration file"};
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

unsigned origin::line_of(const std::string& path, const std::string& table) const {
    auto line = lines.find(path);
    if (line == lines.end())
        line = lines.find(table);
    return line == lines.end() ? 1 : line->second;
}

void problems::keep(unsigned order, unsigned line, std::string text, kind k) {
    // The number keeps those of one line in the order in which they were found.
    kept_.emplace(place{order, line, count_++}, std::move(text));
    wrong_ += k == kind::wrong;
    if (kept_.size() > most_shown)
        kept_.erase(std::prev(kept_.end()));
}

void problems::add(const origin& from, unsigned line, const std::string& path,
                   const std::string& what, kind k) {
    const std::string at = from.file.empty() ? "" : from.file + ":" + std::to_string(line) + ": ";
    keep(from.order, line, at + (path.empty() ? "" : path + ": ") + what, k);
    paths_.emplace(from.order, path);
}

void problems::add_file(const origin& from, unsigned line, const std::string& what) {
    keep(from.order, line, what, kind::wrong);
}

bool problems::about(const origin& from, const std::string& path) const {
    const auto starts = [&](const std::string& with) {
        const auto first = paths_.lower_bound({from.order, with});
        return first != paths_.end() && first->first == from.order &&
               first->second.starts_with(with);
    };
    if (path.empty())
        return starts("");
    return paths_.contains({from.order, path}) || starts(path + ".") || starts(path + "[");
}

std::vector<std::string> problems::shown() const {
    std::vector<std::string> lines;
    for (const auto& [at, text] : kept_)
        lines.push_back(text);
    if (count_ > kept_.size())
        lines.push_back("and " + std::to_string(count_ - kept_.size()) + " more");
    return lines;
}

error problems::joined() const {
    std::string text;
    for (const std::string& line : shown())
        text += (text.empty() ? "" : "; ") + line;
    return {text};
}

bool load_toml(const std::string& file, document& out, problems& found) {
    out.from.file = file;
    auto text = read_file(file);
    if (!text) {
        found.add_file(out.from, 1, text.failure().text);
        return false;
    }
    const toml::parse_result parsed = toml::parse(std::string_view(*text));
    if (!parsed) {
        const toml::parse_error& failure = parsed.error();
        const toml::source_position& begin = failure.source().begin;
        found.add_file(out.from, begin.line,
                       file + ":" + std::to_string(begin.line) + ":" +
                           std::to_string(begin.column) + ": " +
                           std::string(failure.description()));
        return false;
    }
    out.root = to_json(parsed.table(), "", out.from);
    return true;
}

namespace {

toml::table toml_table(const json& value);
toml::array toml_array(const json& value);

// Hand @value to @put as what TOML knows.
template <class Put>
void put_toml(const json& value, Put put) {
    if (value.is_object()) {
        put(toml_table(value));
    } else if (value.is_array()) {
        put(toml_array(value));
    } else if (value.is_boolean()) {
        put(value.get<bool>());
    } else if (value.is_number_integer()) {
        put(value.get<int64_t>());
    } else if (value.is_string()) {
        put(value.get<std::string>());
    }
}

toml::array toml_array(const json& value) {
    toml::array array;
    for (const json& item : value)
        put_toml(item, [&](auto&& v) { array.push_back(std::forward<decltype(v)>(v)); });
    return array;
}

toml::table toml_table(const json& value) {
    toml::table table;
    for (const auto& item : value.items())
        put_toml(item.value(), [&](auto&& v) {
            table.insert_or_assign(item.key(), std::forward<decltype(v)>(v));
        });
    return table;
}

} // namespace

std::string to_toml(const json& root) {
    std::ostringstream text;
    text << toml_table(root) << "\n";
    return text.str();
}

spot spot::operator[](const char* key) const {
    return {value.at(key), join(path, key), from, found};
}

spot spot::operator[](size_t index) const {
    return {value.at(index), join(path, index), from, found};
}

bool spot::good(std::string_view key) const {
    return has(key) && !found.about(from, join(path, key));
}

std::string spot::shown() const {
    if (value.is_null())
        return "this value"; // a date or time
    return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

std::string spot::place() const {
    return from.file.empty() ? "" : from.file + ":" + std::to_string(from.line_of(path, path));
}

bool spot::wrong(const std::string& what) const {
    found.add(from, from.line_of(path, path), path, what);
    return false;
}

bool spot::wrong(std::string_view key, const std::string& what) const {
    const std::string at = join(path, key);
    found.add(from, from.line_of(at, path), at, what);
    return false;
}

bool spot::pending(const std::string& what) const {
    found.add(from, from.line_of(path, path), path, what, problems::kind::pending);
    return false;
}

std::string listed(std::span<const std::string> words, size_t most) {
    std::string text;

    for (size_t i = 0; i < words.size() && i < most; i++)
        text += (i ? ", " : "") + words[i];
    return words.size() > most ? text + ", …" : text;
}

bool read_bool(const spot& at, bool& out) {
    if (!at.value.is_boolean())
        return at.wrong("expected true or false");
    out = at.value.get<bool>();
    return true;
}

bool read_string(const spot& at, std::string& out) {
    if (!at.value.is_string())
        return at.wrong("expected a string");
    out = at.value.get<std::string>();
    return true;
}

bool read_path(const spot& at, size_t most, std::string& out) {
    if (!read_string(at, out))
        return false;
    if (out.empty() || out.find('\0') != out.npos)
        return at.wrong(at.shown() + " is not a path");
    if (out[0] != '/')
        return at.wrong(at.shown() + " is relative, expected an absolute path");
    if (out.size() > most)
        return at.wrong("a path of " + std::to_string(out.size()) +
                        " bytes is too long, expected at most " + std::to_string(most));
    return true;
}

// Bytes, as an integer or a string; 0 only where @zero is a size, too.
bool read_size(const spot& at, bool zero, uint64_t& out) {
    if (!at.value.is_string() && !at.value.is_number_integer())
        return at.wrong("expected a size: bytes, or a string like \"10G\"");
    auto bytes = parse_size(at.value.is_string() ? at.value.get<std::string>() : at.shown());
    if (!bytes)
        return at.wrong(bytes.failure().text);
    if (!*bytes && !zero)
        return at.wrong("0 is not a size, expected 512 bytes or more");
    out = *bytes;
    return true;
}

} // namespace vql
