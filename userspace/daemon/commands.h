// SPDX-License-Identifier: GPL-2.0-only
// What an operator asks for, done by the server and kept over restarts: a disk that is added,
// resized or removed, and files that are read again. On the control thread.
#pragma once

#include "base/event_loop.h"
#include "base/result.h"
#include "base/storage_worker.h"
#include "daemon/config.h"
#include "daemon/config_files.h"
#include "daemon/server.h"
#include "daemon/state.h"

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace vql {

// The files, and the flags that go before them.
struct config_source {
    std::string path;
    nlohmann::json flags;
};

class commands {
  public:
    using completion = std::function<void(result<void>)>;

    // @text is what @from says, and @s serves that with the notes of @state applied.
    commands(event_loop& loop, server& s, state_store& state, config_source from,
             const config_text& text);

    // A disk by the keys of a [[disk]] table. @done with success when it is served and, unless
    // @transient, kept; with an error nothing of it is left.
    void add(const nlohmann::json& table, bool transient, completion done);
    // What is kept is changed first, since nobody can undo a removal, nor a size that a guest has
    // seen; and changed back, before that is answered, when the server refuses.
    void remove(const std::string& name, bool force, bool transient, completion done);
    void resize(const std::string& name, uint64_t bytes, bool transient, completion done);

    // Read the files again, compare them with what runs, and change what differs. @done with what
    // was done and what was not (reload.h), or with all errors of the files, and nothing changed.
    // One at a time: a second one is done after the first.
    void reload(std::function<void(result<nlohmann::json>)> done);

  private:
    void start_reload();
    void end_reload(result<nlohmann::json> outcome);
    bool configured(const std::string& name) const { return configured_.contains(name); }
    void remember(const config_text& text);

    event_loop& loop_;
    server& server_;
    state_store& state_;
    config_source from_;
    std::set<std::string> configured_; // names of disks in the files, as last read
    // Disks that a command resizes, and what was noted about them before.
    std::map<std::string, std::optional<disk_note>> resizing_;
    storage_worker reader_;
    // Who waits for the reload that is under way, and for the one after that.
    std::vector<std::function<void(result<nlohmann::json>)>> asked_, next_;
    bool reloading_ = false;
    std::function<void()> tick_; // of the reload that is under way
};

} // namespace vql
