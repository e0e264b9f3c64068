// SPDX-License-Identifier: GPL-2.0-only
#include "daemon/state.h"

#include "base/lock_holder.h"
#include "base/log.h"
#include "daemon/document.h"

#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <filesystem>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include <utility>

namespace vql {

using nlohmann::json;

namespace {

const std::string prefix = "disk-", suffix = ".toml";
const char* const unfinished = "new.tmp";

std::string file_name(const std::string& disk) {
    return prefix + disk + suffix;
}

struct sized {
    std::string name;
    uint64_t bytes = 0;
    std::string on;
};

constexpr field<sized> resized_fields[] = {
    {"name", [](const spot& at, sized& s) { return read_string(at, s.name); }, true},
    {"size", [](const spot& at, sized& s) { return read_size(at, false, s.bytes); }, true},
    {"on", [](const spot& at, sized& s) { return read_string(at, s.on); }},
};
constexpr field<sized> removed_fields[] = {
    {"name", [](const spot& at, sized& s) { return read_string(at, s.name); }, true},
};

// One table about disk @name in the array @key, or none.
template <class Read>
void read_note(const spot& at, const char* key, const std::string& name, Read read) {
    if (!at.has(key))
        return;
    const spot list = at[key];
    if (!list.value.is_array() || list.value.size() != 1 || !list.value[0].is_object())
        return void(list.wrong("expected one table"));
    const json& said = list.value[0].contains("name") ? list.value[0]["name"] : json();
    if (said != name)
        return void(list[size_t{0}].wrong("name", "this file is about disk " + name));
    read(list[size_t{0}]);
}

disk_note read_note(const document& d, const std::string& name, problems& found) {
    const spot at{d.root, "", d.from, found};
    disk_note note;
    for (const auto& item : d.root.items())
        if (item.key() != "disk" && item.key() != "resized" && item.key() != "removed")
            at.wrong(item.key(), "unknown key (known: disk, resized, removed)");
    read_note(at, "disk", name, [&](const spot& disk) {
        std::vector<target_config> own;
        if (auto parsed = parse_disk(disk.value, own); !parsed)
            disk.wrong(parsed.failure().text);
        note.added = disk.value;
    });
    read_note(at, "resized", name, [&](const spot& table) {
        sized s;
        read_table<sized>(table, resized_fields, s);
        note.resized = s.bytes;
        note.on = s.on;
    });
    read_note(at, "removed", name, [&](const spot& table) {
        sized s;
        read_table<sized>(table, removed_fields, s);
        note.removed = true;
    });
    if (d.root.empty() || (note.removed && d.root.size() != 1))
        found.add_file(d.from, 1, d.from.file + ": is no note of what a command did");
    return note;
}

result<std::vector<std::string>> names_in(const std::string& folder) {
    std::vector<std::string> names;
    std::error_code failed;
    std::filesystem::directory_iterator entries(folder, failed);
    if (failed.value() == ENOENT)
        return names;
    for (; !failed && entries != std::filesystem::directory_iterator(); entries.increment(failed)) {
        const std::string name = entries->path().filename().string();
        if (name.size() > prefix.size() + suffix.size() && name.starts_with(prefix) &&
            name.ends_with(suffix))
            names.push_back(
                name.substr(prefix.size(), name.size() - prefix.size() - suffix.size()));
    }
    if (failed)
        return errno_error(folder, failed.value());
    std::sort(names.begin(), names.end());
    return names;
}

// The target of all of @d, whose size follows the disk's.
target_config* whole_target(const disk_config& d, config& c) {
    if (!d.has_whole_target())
        return nullptr;
    for (target_config& t : c.targets)
        if (t.name == d.extents[0].target)
            return &t;
    return nullptr;
}

} // namespace

std::string disk_note::toml(const std::string& name) const {
    json root = json::object();
    if (!added.is_null())
        root["disk"] = json::array({added});
    if (resized) {
        json table = {{"name", name}, {"size", resized}};
        if (!on.empty())
            table["on"] = on;
        root["resized"] = json::array({table});
    }
    if (removed)
        root["removed"] = json::array({{{"name", name}}});
    return "# What commands did with this disk, kept by vqlaned over restarts.\n" + to_toml(root);
}

disk_notes read_notes(const std::string& folder, std::vector<std::string>& wrong) {
    disk_notes notes;
    auto names = names_in(folder);
    if (!names) {
        wrong.push_back(names.failure().text);
        return notes;
    }
    for (const std::string& name : *names) {
        document d;
        problems found;
        disk_note note;
        if (load_toml(folder + "/" + file_name(name), d, found))
            note = read_note(d, name, found);
        if (found.empty())
            notes.emplace(name, std::move(note));
        else
            wrong.push_back(found.joined().text);
    }
    return notes;
}

std::string place_of(const disk_config& d, const config& c) {
    std::string place;
    for (const extent_config& e : d.extents) {
        std::string one = e.target; // made for the disk: says it itself
        for (const target_config& t : c.targets)
            if (t.name == e.target && !made_for_disk(t.name))
                one = t.type == target_type::uring  ? "file:" + t.path
                      : t.type == target_type::nvme ? t.device + "/" + std::to_string(t.nsid)
                                                    : t.name;
        place += (place.empty() ? "" : " ") + one;
    }
    return place;
}

void apply_notes(const disk_notes& notes, config& c, std::vector<std::string>& said) {
    for (const auto& [name, note] : notes) {
        auto d = std::find_if(c.disks.begin(), c.disks.end(),
                              [&n = name](const disk_config& disk) { return disk.name == n; });
        const std::string what = "disk " + name;
        if (note.removed) {
            if (d == c.disks.end())
                continue;
            said.push_back(what + " is in the configuration, but was removed by command: it is " +
                           "not served (vqlane reload brings it back)");
            c.disks.erase(d);
            continue;
        }
        if (!note.added.is_null() && d != c.disks.end())
            said.push_back(what + " is in the configuration now: what it was added with by " +
                           "command no longer counts");
        if (!note.added.is_null() && d == c.disks.end()) {
            std::vector<target_config> own;
            auto parsed = parse_disk(note.added, own);
            if (!parsed) // read_notes() has seen to that
                continue;
            add_named_targets(*parsed, c.targets);
            d = c.disks.insert(c.disks.end(), std::move(*parsed));
        }
        if (d == c.disks.end() || !note.resized)
            continue;
        if (const std::string place = place_of(*d, c); !note.on.empty() && note.on != place) {
            said.push_back(what + " is on " + place + " now: the size that a command gave it on " +
                           note.on + " no longer counts");
            continue;
        }
        if (d->bytes > note.resized) {
            said.push_back(what + ": of " + std::to_string(d->bytes) +
                           " bytes, as configured, which is more than the " +
                           std::to_string(note.resized) + " of a command");
            continue;
        }
        if (d->bytes && d->bytes < note.resized) {
            if (note.added.is_null())
                said.push_back(what + ": of " + std::to_string(note.resized) +
                               " bytes, as resized by command, not of " + std::to_string(d->bytes) +
                               " as configured");
            d->bytes = note.resized;
        }
        if (target_config* t = whole_target(*d, c))
            t->at_least = std::max(t->at_least, note.resized);
    }
    decide_access(c);
}

// ---- the store ----

// Used by one thread at a time: the control thread in open(), then the worker's.
struct state_store::place {
    std::string folder;
    unique_fd lock;
    unique_fd dir; // ours while it is open

    // The folder is there, and ours. With @make it is made if it is not there.
    result<void> take(bool make);
    result<void> write(const std::string& name, const std::string& text) const;
    result<void> erase(const std::string& name) const;

  private:
    result<void> sync() const;
};

result<void> state_store::place::take(bool make) {
    if (dir)
        return {};
    std::error_code failed;
    if (make) {
        std::filesystem::create_directories(std::filesystem::path(folder).parent_path(), failed);
        if (mkdir(folder.c_str(), 0700) < 0 && errno != EEXIST)
            return errno_error(folder, errno);
    }
    unique_fd opened(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!opened)
        return !make && errno == ENOENT ? result<void>() : errno_error(folder, errno);
    // Where nothing can be written nobody needs a lock, and what is there can be read.
    struct statvfs fs {};
    if (fstatvfs(opened.get(), &fs) == 0 && fs.f_flag & ST_RDONLY) {
        dir = std::move(opened);
        return {};
    }
    auto taken = take_lock_file(
        folder, "lock", folder + " is in use by another vqlaned (give this one its own state_dir)");
    if (!taken)
        return taken.failure();
    lock = std::move(*taken);
    dir = std::move(opened);
    return {};
}

result<void> state_store::place::sync() const {
    return fsync(dir.get()) < 0 ? errno_error(folder, errno) : result<void>();
}

result<void> state_store::place::write(const std::string& name, const std::string& text) const {
    const auto fail = [&](int err) {
        unlinkat(dir.get(), unfinished, 0);
        return errno_error(folder + "/" + name, err);
    };
    unique_fd file(
        openat(dir.get(), unfinished, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600));
    if (!file)
        return fail(errno);
    for (size_t done = 0; done < text.size();) {
        const ssize_t n = ::write(file.get(), text.data() + done, text.size() - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return fail(errno);
        done += size_t(n);
    }
    // Its bytes before its name, and its name before we say so: else a crash could leave it empty.
    if (fsync(file.get()) < 0)
        return fail(errno);
    if (renameat(dir.get(), unfinished, dir.get(), name.c_str()) < 0)
        return fail(errno);
    return sync();
}

result<void> state_store::place::erase(const std::string& name) const {
    if (unlinkat(dir.get(), name.c_str(), 0) < 0 && errno != ENOENT)
        return errno_error(folder + "/" + name, errno);
    return sync();
}

void state_store::open(std::vector<std::string>& wrong) {
    place_ = std::make_shared<place>();
    place_->folder = folder_;
    if (auto ok = place_->take(false); !ok)
        wrong.push_back(ok.failure().text);
    else if (place_->dir)
        notes_ = read_notes(folder_, wrong);
}

const disk_note* state_store::find(const std::string& name) const {
    const auto found = notes_.find(name);
    return found == notes_.end() ? nullptr : &found->second;
}

std::string state_store::file_of(const std::string& name) const {
    return folder_ + "/" + file_name(name);
}

void state_store::set(const std::string& name, const std::optional<disk_note>& note) {
    if (note)
        notes_[name] = *note;
    else
        notes_.erase(name);
}

state_store::change state_store::put(const std::string& name, std::optional<disk_note> note,
                                     completion done) {
    change c{name, ++last_, {}};
    if (const disk_note* before = find(name))
        c.before = *before;
    set(name, note);
    serials_[name] = c.serial;
    const std::string text = note ? note->toml(name) : "";
    worker_.run<bool>(
        [place = place_, file = file_name(name), text]() -> result<bool> {
            // To erase needs no folder.
            if (auto ok = place->take(!text.empty()); !ok)
                return ok.failure();
            if (!place->dir)
                return true;
            auto ok = text.empty() ? place->erase(file) : place->write(file, text);
            return ok ? result<bool>(true) : ok.failure();
        },
        [this, c, done = std::move(done)](result<bool> ok) {
            if (ok)
                return done({});
            if (holds(c))
                set(c.name, c.before);
            done(error{"it could not be kept for the next start: " + ok.failure().text});
        });
    return c;
}

bool state_store::holds(const change& c) const {
    const auto last = serials_.find(c.name);
    return last != serials_.end() && last->second == c.serial;
}

void state_store::undo(const change& c, std::function<void()> done) {
    if (!holds(c))
        return done();
    put(c.name, c.before, [name = c.name, done = std::move(done)](const result<void>& ok) {
        if (!ok)
            log_error("disk " + name + ": a command was refused, but what was kept of the disk " +
                      "before it could not be written again, and the next start may find what " +
                      "the command was to do: " + ok.failure().text);
        done();
    });
}

} // namespace vql
