// SPDX-License-Identifier: GPL-2.0-only
// The vDPA front end: one disk of the kernel module, which a VMM has open as /dev/vhost-vdpa-N.
//
// The disk lives in the module; this is the daemon's claim on it. Its queues are served under a
// lease. The module tells by poll() that something has changed, and then we look:
//
//   no lease, the disk is runnable   acquire it, map the guest's memory and the in-flight record,
//                                    start the queues
//   a lease, and it is recalled      stop the queues, which drain; unmap; yield; look again
//   a lease that was revoked         the same, but without the yield. Memory and record were taken
//                                    away under us meanwhile (guest_memory.h), so that nothing done
//                                    since has reached the guest or the record: whoever acquires
//                                    the disk next finds in the record what was in flight
//
// A lease that ended without a yield leaves the disk dirty: its next holder, this process or
// another, begins with what the record tells, as a vhost-user daemon does when its VMM reconnects.
//
// Within a lease a queue is ours (the poll lane) or lent to the module (the kernel lane). A loan
// outlives the lease and us; whoever acquires the disk next finds its queues lent. It ends when we
// take the queue back, or by itself, at a request that the module leaves to us.
#pragma once

#include "base/kmod.h"
#include "base/result.h"
#include "frontend/frontend.h"
#include "frontend/guest_memory.h"
#include "frontend/inflight.h"
#include "frontend/lane.h"

#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace vql {

class vdpa_server : public frontend {
  public:
    vdpa_server(event_loop& loop, queue_host& host, std::string name, lane_settings lane);
    ~vdpa_server() override;

    // Claim the module's disk of this name, or create it. One of another shape is made anew, unless
    // a VMM has it open.
    result<void> open(kmod_control& module);

    // "/dev/vhost-vdpa-N"; the vDPA device's name while it has none.
    std::string address() const override;
    // Drop the claim. The disk stays, for the next daemon. Its guest waits for it, but where the
    // disk may be in the kernel lane: there all its queues go.
    void close(std::function<void()> done) override;
    void remove(bool force, std::function<void(result<void>)> done) override;
    bool connected() const override { return state_.status != 0; }
    bool waits_for_vmm() const override { return bool(removed_); }
    void geometry_changes(std::function<void()> change) override;
    void queue_broken(virtqueue& q) override;
    void queue_through(virtqueue& q) override;
    void check_memory() override;
    void tick() override;
    lane_report lane_of(uint32_t index) const override;
    std::string problem() const override;

  private:
    struct vdpa_ring : ring_state {
        vql_disk_queue set_up{}; // as of the lease's beginning, or the end of a loan
        bool lent = false;
        bool taking = false;  // … and was asked back
        bool limited = false; // runs for a single request, or for what was in flight
        bool dirty = false;   // a loan ended with requests in flight
        bool served = false;  // by a poller, since it is ours: base is ours to tell
        const char* why = "";
        lane_choice choice;
        uint64_t answered = 0; // at the last tick
    };

    result<void> claim(kmod_control& module);
    void unwatch();
    void finish(std::function<void()> done);
    void look();
    void ended(const std::string& why);
    void acquire();
    result<void> take_memory(kmod_mspace space);
    result<void> take_rings();
    void run_rings();
    result<void> prepare_ring(vdpa_ring& r);
    void refuse(const std::string& why);
    void broken(const std::string& what);
    void let_go(std::function<void()> then);
    void yield();
    std::vector<ring_state*> all_rings();
    void prepare_lane();
    bool lend(vdpa_ring& r);
    void leave_to_kernel();
    policy_answer ask_policy(uint32_t index, vql_op op, uint64_t sector, uint64_t sectors) const;
    void look_at_lent();
    bool any_lent() const;
    void lend_again(std::vector<ring_state*> rings);
    void place_again();
    bool obliged() const;

    kmod_disk disk_;
    bool watching_ = false;
    vql_disk_state state_{}; // as last looked at
    bool leased_ = false;    // we have it, or had it and have not let go yet
    bool dirty_ = false;     // … and the lease before it ended without a yield
    bool refused_ = false;   // not to be served until the driver resets it
    std::string trouble_;    // what broken() was last called for
    guest_memory memory_;
    std::unique_ptr<inflight_region> record_;
    std::vector<std::unique_ptr<vdpa_ring>> rings_;
    std::function<void(result<void>)> removed_; // waits for the VMM to let go
    const lane_settings lane_;
    bool lane_ready_ = false;  // the module knows what to reach
    bool lane_later_ = false;  // not yet, while a controller is being reset
    std::string lane_refusal_; // why not
    std::vector<std::function<void()>>
        when_back_; // wait until no queue is lent; none is lent meanwhile
};

} // namespace vql
