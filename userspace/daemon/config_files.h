// SPDX-License-Identifier: GPL-2.0-only
// The configuration's files, read and checked as a whole: a wrong one starts nothing.
#pragma once

#include "daemon/config.h"
#include "daemon/document.h"

#include <deque>
#include <string>
#include <vector>

namespace vql {

// A configuration, and where each of its tables stands.
class config_text {
  public:
    config_text() = default;
    config_text(const config_text&) = delete; // places refer to its documents
    config_text& operator=(const config_text&) = delete;

    config settings;
    problems found;
    std::vector<spot> daemons;        // the [daemon] tables
    std::vector<spot> targets, disks; // one for each of the settings

    // Where the target of @disk's extent @i is named: its key "target", "file" or in "extents".
    spot extent_place(size_t disk, size_t i) const;
    // The [daemon] key @key, or null.
    const spot* daemon_key(const char* key) const;

  private:
    friend void load_config(const std::string&, const nlohmann::json&, config_text&);
    void add_file(const std::string& file);
    void check_daemon();

    std::deque<document> documents_;
    std::deque<spot> daemon_keys_;
};

// The file at @path, and after it, in the order of their names, all that end in ".toml" in the
// folder conf.d beside it. Everything that can be told from their texts alone is checked: see
// config.h, and what tables say about each other: names, sockets and paths that are given twice,
// unknown targets, parts of a target that two disks claim. Errors are in @out.found; the settings
// are to be used only when it is empty. @flags replace keys of [daemon], and are valid by
// themselves (override_daemon()).
void load_config(const std::string& path, const nlohmann::json& flags, config_text& out);

} // namespace vql
