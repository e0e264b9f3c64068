// SPDX-License-Identifier: GPL-2.0-only
// Configurations of tests, and the errors that they give.
#pragma once

#include "daemon/config_files.h"

#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <string>
#include <unistd.h>
#include <vector>

#include <catch2/catch_test_macros.hpp>
#include <nlohmann/json.hpp>

namespace vql::test {

// In a folder of its own, since what is beside it is read too.
class temp_file {
  public:
    explicit temp_file(const std::string& text) {
        REQUIRE(::mkdtemp(folder_.data()));
        std::ofstream(path()) << text;
    }
    temp_file(const temp_file&) = delete;
    temp_file& operator=(const temp_file&) = delete;
    ~temp_file() { std::filesystem::remove_all(folder_); }
    std::string path() const { return folder_ + "/vqlaned.toml"; }
    const std::string& folder() const { return folder_; }
    // A file beside it.
    void add(const std::string& name, const std::string& text) const {
        std::filesystem::create_directories(
            std::filesystem::path(folder_ + "/" + name).parent_path());
        std::ofstream(folder_ + "/" + name) << text;
    }

  private:
    std::string folder_ = (std::filesystem::temp_directory_path() / "vqlane-XXXXXX").string();
};

// All lines of errors that @path gives.
inline std::vector<std::string> errors_of(const std::string& path, config* out = nullptr) {
    config_text text;
    load_config(path, nlohmann::json::object(), text);
    if (out)
        *out = text.settings;
    return text.found.shown();
}

inline result<config> load_path(const std::string& path) {
    config c;
    const auto errors = errors_of(path, &c);
    return errors.empty() ? result<config>(c) : error{errors.front()};
}

inline result<config> load(const std::string& text) {
    const temp_file file(text);
    return load_path(file.path());
}

// The errors that @text gives, a line each, with FILE for the file's name.
inline std::string refusal(const std::string& text) {
    const temp_file file(text);
    std::string all;
    for (std::string why : errors_of(file.path())) {
        for (size_t at; (at = why.find(file.path())) != why.npos;)
            why.replace(at, file.path().size(), "FILE");
        all += (all.empty() ? "" : "\n") + why;
    }
    return all.empty() ? "(valid)" : all;
}

// A document with one good target and one disk, whose table goes on with line 8.
inline std::string disk(const std::string& rest) {
    return "[[target]]\nname = \"t\"\ntype = \"null\"\nsize = \"1G\"\n"
           "[[disk]]\nname = \"d\"\n" +
           rest + "\n";
}

struct refused {
    std::string text;
    std::string error;
};

inline void check_refused(std::initializer_list<refused> cases) {
    for (const refused& c : cases) {
        INFO(c.text);
        CHECK(refusal(c.text) == c.error);
    }
}

} // namespace vql::test
