// SPDX-License-Identifier: GPL-2.0-only
// The daemon as a whole: starts its parts in order, keeps the disks, ends in reverse order.
// On the control thread.
#pragma once

#include "base/event_loop.h"
#include "base/result.h"
#include "daemon/config.h"
#include "daemon/controllers.h"
#include "daemon/disk.h"
#include "daemon/poller.h"
#include "daemon/targets.h"
#include "ebpf/maps.h"

#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace vql {

class server {
  public:
    using completion = std::function<void(result<void>)>;

    server(event_loop& loop, config c) : loop_(loop), config_(std::move(c)) {}
    ~server();

    // Lock the run directory, start pollers, open targets, create disks, each of which is served
    // before the next is created. After an error stop() comes before the destructor, as ever.
    result<void> start();
    // Let all clients go; @done when everything has drained.
    void stop(std::function<void()> done);

    // @own_targets have no [[target]]: those that are not there are opened for this disk, and
    // closed with the last that uses them.
    result<disk*> add_disk(const disk_config& c,
                           const std::vector<target_config>& own_targets = {});
    // Refused while a guest is connected, unless @force.
    void remove_disk(const std::string& name, bool force, completion done);
    void resize_disk(const std::string& name, uint64_t bytes, completion done);

    disk* find(const std::string& name) const;
    const std::vector<std::unique_ptr<disk>>& disks() const { return disks_; }
    const std::vector<std::unique_ptr<poller>>& pollers() const { return pollers_; }
    const config& settings() const { return config_; }

  private:
    result<void> lock_run_dir();
    result<void> start_pollers();
    result<target*> open_target(const target_config& c);
    void close_target(target& t, std::function<void()> done);
    void disk_ended(disk* d, std::function<void()> done);
    result<void> remove_orphan(const std::string& name);
    result<disk*> adopt(const std::string& name);
    std::vector<vql_disk_next> orphans();
    void report_orphans();
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
    std::unique_ptr<disk_services> services_;
    std::vector<std::unique_ptr<disk>> disks_;
    std::vector<std::string> leaving_; // names of disks that are being removed
};

} // namespace vql
