// SPDX-License-Identifier: GPL-2.0-only
// A disk: a volume, its queues' places on the pollers, its statistics, and its front end. On the
// control thread.
#pragma once

#include "base/event_loop.h"
#include "base/result.h"
#include "daemon/config.h"
#include "daemon/controllers.h"
#include "daemon/poller.h"
#include "daemon/target_keeper.h"
#include "daemon/targets.h"
#include "daemon/volume.h"
#include "ebpf/maps.h"
#include "ebpf/remap.h"
#include "frontend/frontend.h"

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace vql {

// What all disks share.
class disk_services {
  public:
    disk_services(event_loop& l, target_set& t, target_keeper& k, bpf_maps& m, remap_programs& rp,
                  std::vector<std::unique_ptr<poller>>& p, controller_set& c,
                  const config& settings)
        : loop(l), targets(t), keeper(k), maps(m), remap(rp), pollers(p), controllers(c),
          registration(settings.register_memory), promote_iops(settings.promote_iops),
          demote_iops(settings.demote_iops) {}

    event_loop& loop;
    target_set& targets;
    target_keeper& keeper;
    bpf_maps& maps;
    remap_programs& remap;
    std::vector<std::unique_ptr<poller>>& pollers;
    controller_set& controllers;
    const memory_registration registration;
    uint32_t promote_iops, demote_iops; // a reload may change them

    // The kernel module's control device, opened when first asked for.
    result<kmod_control*> module();
    // Load the programs that remap and count in the kernel lane, with the first disk that may be
    // there: for them libbpf reads all of the kernel's types. The module is loaded. What fails is a
    // warning, once: pollers serve without them.
    void load_lane_programs();

  private:
    std::optional<kmod_control> module_;
    bool lane_programs_loaded_ = false;
};

class disk : public queue_host {
  public:
    // Claim the targets, make the maps, listen on @socket. Errors leave nothing behind but the maps
    // of a disk that was in the module before.
    static result<std::unique_ptr<disk>> create(const disk_config& c, const std::string& socket,
                                                disk_services& services);
    ~disk() override;

    // Let go of the guest; @done when the disk may be destroyed. A vDPA disk stays in the module,
    // for the next daemon.
    void close(std::function<void()> done);
    // End the disk for good. With @force also while a guest uses it: its requests are answered with
    // errors until it lets go.
    void remove(bool force, std::function<void(result<void>)> done);

    using completion = std::function<void(result<void>)>;
    // Grow to @bytes: targets grow with it where the disk has one whole target that can, which may
    // have to wait for storage. When storage has them, @keep, if any, writes that down and calls
    // what it is given; with success the guest is told. @done on the control thread, with the error
    // when there is one, also when the disk ends meanwhile.
    void resize(uint64_t bytes, std::function<void(completion)> keep, completion done);

    // The socket is for those whom @c says from now on.
    result<void> set_access(const disk_config& c);

    const disk_config& settings() const { return config_; }
    // Where a guest attaches: the socket's path, or the vDPA device.
    std::string address() const { return server_->address(); }
    const volume& layout() const { return volume_; }
    uint32_t slot() const { return *slot_; } // in the maps of all disks
    bool connected() const { return server_->connected(); }
    frontend::client_report clients() const { return server_->clients(); }
    // What keeps its guest from being served, as far as we can tell; or empty.
    std::string problem() const { return server_->problem(); }
    // Was it removed by force, and only a VMM keeps it?
    bool waits_for_vmm() const { return server_->waits_for_vmm(); }
    uint32_t queues_running() const { return server_->queues_running(); }
    // A program of the operator's that remaps in the module, from @file, instead of the default one
    // or another; an empty name takes it away. When @done is called it holds: no request is under
    // way that was remapped without it, and none will be. If that fails, nothing has changed.
    void set_policy(const std::string& file, std::function<void(result<void>)> done);
    std::string policy() const { return services_.remap.policy(*slot_); }
    std::vector<int> poller_cpus() const;
    // Sum over all pollers, and what the kernel lane did.
    vql_disk_stats stats(vql_lane_kind lane) const;
    // @t went offline, or is online again: the kernel lane is to know.
    void target_changed(const target& t);
    void check_memory() { server_->check_memory(); }
    // Once a second.
    void tick() { server_->tick(); }
    frontend::lane_report lane_of(uint32_t queue) const { return server_->lane_of(queue); }

    // queue_host
    const blk_geometry& geometry() const override { return geometry_; }
    void start_queue(virtqueue& q) override;
    void stop_queue(virtqueue& q, std::function<void()> done) override;
    void set_call(virtqueue& q, unique_fd call) override;
    result<void> memory_mapped(guest_memory& m) override;
    void memory_unmapped(guest_memory& m, std::function<void()> done) override;

  private:
    disk(const disk_config& c, const std::string& socket, disk_services& services);
    result<void> set_up();
    result<void> open_frontend();
    bool has_whole_target() const;
    struct growth {
        uint64_t was; // bytes, when it was planned
        volume planned;
        shared_array extents;
    };
    result<std::shared_ptr<growth>> plan_growth(uint64_t bytes, uint64_t grown);
    void grow_target_to(uint64_t bytes, completion done);
    void keep_growth(const std::shared_ptr<growth>& to, const std::function<void(completion)>& keep,
                     completion done);
    void grow(const std::shared_ptr<growth>& to, completion done);
    result<void> claim_parts(const volume& v);
    result<void> take_slot();
    result<void> apply_volume(volume v, shared_array extents);
    size_t poller_index(uint32_t queue) const;
    poller& poller_of(const virtqueue& q) const;
    std::vector<controller*> controllers() const;
    result<void> map_for_dma(guest_memory& m);
    void unmap_for_dma(guest_memory& m);
    lane_settings lane() const;
    result<kmod_lane> lane_plan() const;

    disk_config config_;
    std::string socket_;
    std::optional<uint32_t> slot_; // in the maps of all disks
    bool lives_on_ = false;        // in the module, and so do its maps
    disk_services& services_;
    volume volume_;
    blk_geometry geometry_;
    shared_array stats_, extents_;
    vql_extent_table table_{};
    std::vector<std::unique_ptr<served_queue>> queues_;
    std::vector<uint8_t*> registered_;     // regions that pollers were told to pin
    const guest_memory* mapped_ = nullptr; // attached to the controllers
    kmod_mspace own_space_;                // pins it, when it is not the module's already
    std::unique_ptr<frontend> server_;
    // Ends with us, and when the disk is removed by force: what comes back from storage later finds
    // out. Control thread only.
    std::shared_ptr<const bool> alive_ = std::make_shared<bool>(true);
};

} // namespace vql
