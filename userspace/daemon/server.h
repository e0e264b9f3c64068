// SPDX-License-Identifier: GPL-2.0-only
// The daemon as a whole: starts its parts in order, keeps the disks, ends in reverse order.
// On the control thread, which never waits for storage: what concerns a disk's targets is asked of
// the target_keeper, and goes on when that calls back.
#pragma once

#include "base/event_loop.h"
#include "base/result.h"
#include "daemon/config.h"
#include "daemon/controllers.h"
#include "daemon/disk.h"
#include "daemon/poller.h"
#include "daemon/target_keeper.h"
#include "daemon/targets.h"
#include "ebpf/maps.h"

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace vql {

// A disk as its operator sees it: from the command or the configuration that asks for it until it
// has gone, also while it cannot be served.
struct disk_entry {
    using completion = std::function<void(result<void>)>;
    using clock = std::chrono::steady_clock;
    // opening: its targets are. waiting: one of them is not there, or the disk cannot be served as
    // it is asked for; tried again until it can. closing: it was removed, and storage or a guest
    // has not let go yet.
    enum class phase : uint8_t { opening, waiting, ready, closing };

    disk_config settings;
    std::string socket; // vhost-user: where it listens when it is ready
    phase now = phase::opening;
    clock::time_point since = clock::now(); // of the phase
    std::string why;                        // waiting: for what
    std::unique_ptr<disk> served;           // ready, and closing while a guest has not let go
    bool refuse = false;                // it ends, with an error, if it cannot be served at once
    completion asked;                   // who asked for it, and waits for it to be served
    completion removal;                 // who asked for its end, and waits for that
    std::shared_ptr<completion> resize; // who asked for another size last
    bool forced = false;                // … whatever its guest says
    clock::time_point next_try;         // waiting, and all its targets are there
    uint32_t tries = 0;

    void enter(phase next) {
        now = next;
        since = clock::now();
    }
};

class server {
  public:
    using completion = disk_entry::completion;
    // What becomes of a disk whose targets are not there.
    enum class if_missing : uint8_t { refuse, wait };

    server(event_loop& loop, config c) : loop_(loop), config_(std::move(c)) {}
    ~server();

    // Lock the run directory, start pollers, have the targets opened, and serve each disk as soon
    // as its targets are there: from settle() on, or from when the loop runs. After an error stop()
    // comes before the destructor, as ever.
    result<void> start();
    // Run the loop until all disks are served that can be. Storage that hangs gets 2 s, a drive
    // that does not answer 35 s, all together a minute: then the disks wait, and who waits for us
    // goes on. With @strict there is no such limit, and a disk that cannot be served is an error.
    // Returns early after stop().
    result<void> settle(bool strict);
    // Let all clients go; @done when everything has drained.
    void stop(std::function<void()> done);

    // @own_targets have no [[target]]: those that are not there are opened for this disk, and
    // closed with the last that uses them. @done when the disk is served, or cannot be: then it is
    // gone again (refuse), or there and waiting, which is no error (wait).
    void add_disk(const disk_config& c, const std::vector<target_config>& own_targets,
                  if_missing missing, completion done);
    // Whoever asked for the disk no longer waits: unless it is served by now, it goes again.
    void interrupt_add(const std::string& name);
    // Refused while a guest is connected, unless @force. @done when nothing of the disk is left;
    // with @force also after a few seconds: then the disk is closing until its storage has
    // answered.
    void remove_disk(const std::string& name, bool force, completion done);
    // @done when storage has answered, and the guest is told. @keep, if any: see disk::resize().
    void resize_disk(const std::string& name, uint64_t bytes, std::function<void(completion)> keep,
                     completion done);

    // No configuration wants target @name any more: it is closed, which may take its storage some
    // time. Refused while a disk is on it.
    result<void> drop_target(const std::string& name);
    // The disk's socket is for those whom @c says.
    result<void> set_access(const disk_config& c);
    // @next is what is served from now on; its targets and disks are there, or were told to be.
    // Takes from it what of [daemon] can change while we run. Returns the keys that did.
    std::vector<std::string> take_settings(const config& next);

    // Only a disk that is served.
    disk* find(const std::string& name) const;
    // All that were asked for, in that order.
    const std::vector<std::unique_ptr<disk_entry>>& entries() const { return entries_; }
    disk_entry* find_entry(const std::string& name) const;
    // What keeps @e from being served, or from ending, or from what was last asked of it, in the
    // operator's words; empty: nothing.
    std::string problem(const disk_entry& e) const;
    const std::vector<std::unique_ptr<poller>>& pollers() const { return pollers_; }
    const config& settings() const { return config_; }

  private:
    result<void> lock_run_dir();
    result<void> start_pollers();
    size_t unsettled() const;
    std::vector<disk_entry*> users_of(const std::string& target) const;
    void target_changed(const std::string& name);
    std::string conflict(const disk_config& c, const disk_entry* self) const;
    void try_disk(disk_entry& e);
    void cannot_serve(disk_entry& e, const std::string& why, bool own_try);
    void remove_served(disk_entry& e, bool force, completion done);
    void remove_unserved(disk_entry& e, bool force, completion done);
    void drop_unused(const std::string& target, std::function<void()> done);
    void end_entry(disk_entry& e, result<void> outcome);
    void look_at_disks();
    result<void> remove_orphan(const std::string& name);
    result<void> adopt(disk_entry& e);
    std::vector<vql_disk_next> orphans();
    void report_orphans();
    void check_stopped();
    void once_a_second();
    disk_services& services() { return *services_; }

    event_loop& loop_;
    config config_;
    unique_fd lock_;
    std::unique_ptr<bpf_maps> maps_;
    std::unique_ptr<remap_programs> remap_;
    target_set targets_;
    std::vector<std::unique_ptr<poller>> pollers_;
    std::unique_ptr<controller_set> controllers_;
    std::unique_ptr<target_keeper> keeper_;
    std::unique_ptr<disk_services> services_;
    std::vector<std::unique_ptr<disk_entry>> entries_;
    bool ending_ = false;               // stop() was called
    std::function<void()> stopped_;     // stop() was called, and this is still to be told
    std::vector<disk_entry*> stopping_; // those that stop() closes
};

} // namespace vql
