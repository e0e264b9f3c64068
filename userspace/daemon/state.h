// SPDX-License-Identifier: GPL-2.0-only
// What operators did by command, kept in files over restarts, crashes and reboots.
//
// STATE_DIR/disk-NAME.toml, one for each disk, in the configuration's syntax: the [[disk]] that a
// command added, [[resized]] with the size that a command gave it, or that it was [[removed]] from
// those of the configuration. One file each, since then a damaged one concerns one disk, and a
// command writes no more than it changed.
//
// A note is written beside its file, made durable, and put in the file's place, before the command
// is answered: whatever dies when, a file holds the old note or the new one.
#pragma once

#include "base/event_loop.h"
#include "base/fd.h"
#include "base/result.h"
#include "base/storage_worker.h"
#include "daemon/config.h"

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace vql {

struct disk_note {
    nlohmann::json added; // the keys of its [[disk]]; null: the configuration has it
    uint64_t resized = 0; // bytes, at least; 0: as it says itself
    std::string on;       // resized: where the bytes are that became so many; empty: anywhere
    bool removed = false; // and nothing else

    bool empty() const { return added.is_null() && !resized && !removed; }
    std::string toml(const std::string& name) const;
};

// Notes by the names of their disks.
using disk_notes = std::map<std::string, disk_note>;

// Those in @folder, which need not be there. What cannot be read, or is no note, is told in @wrong,
// a line for each file, and is left alone.
disk_notes read_notes(const std::string& folder, std::vector<std::string>& wrong);

// Where the bytes of @d, one of @c's, are: other files and drives are another disk, whatever its
// name.
std::string place_of(const disk_config& d, const config& c);

// Add to @c the disks that commands added, and take from it those that commands removed. Sizes are
// the larger of what @c and a command say. What an operator should know of that goes to @said.
void apply_notes(const disk_notes& notes, config& c, std::vector<std::string>& said);

// The notes of a daemon that runs. On the control thread; files are written on a thread of the
// store's own, in the order in which that was asked for.
class state_store {
  public:
    using completion = std::function<void(result<void>)>;

    state_store(event_loop& loop, std::string folder) : folder_(std::move(folder)), worker_(loop) {}

    // Take the folder, so that no other daemon writes there, and read what is in it. What is wrong
    // with it is for the log: the daemon goes on, and keeps nothing in a folder that is not its.
    // May wait for storage: at a start only.
    void open(std::vector<std::string>& wrong);

    const disk_notes& notes() const { return notes_; }
    const disk_note* find(const std::string& name) const;
    // Where disk @name's note is, for messages.
    std::string file_of(const std::string& name) const;

    // What put() did, for undo().
    struct change {
        std::string name;
        uint64_t serial = 0;
        std::optional<disk_note> before;
    };
    // Note @note about disk @name, or that there is nothing to note. notes() have it at once;
    // @done when it is durable, or with why it is not: then what was noted before holds again,
    // unless something else was meanwhile.
    change put(const std::string& name, std::optional<disk_note> note, completion done);
    // Is what @c noted, or tries to, still the last about its disk?
    bool holds(const change& c) const;
    // What was noted before @c holds again, unless something else was meanwhile. @done when that is
    // durable; where it cannot be, the log says so.
    void undo(const change& c, std::function<void()> done);

  private:
    struct place; // the folder, as the worker's thread knows it

    void set(const std::string& name, const std::optional<disk_note>& note);

    std::string folder_;
    std::shared_ptr<place> place_;
    disk_notes notes_;
    std::map<std::string, uint64_t> serials_; // of the last put() for each
    uint64_t last_ = 0;
    storage_worker worker_;
};

} // namespace vql
