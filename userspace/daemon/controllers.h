// SPDX-License-Identifier: GPL-2.0-only
// The NVMe controllers that the daemon holds through the module: opened with the first target on
// them, closed with the last; one queue pair for each poller, as far as the controller's reach.
//
// A queue pair can be lost at any moment (a guest's memory had to be fenced, the controller was
// reset): then its lane gets a new one, all memory is attached to that, and the poller submits
// again what was not finished. A controller that is gone fails everything.
//
// On the control thread. What may wait for the drive is a worker's: to open a controller, to let go
// of it, to ask for a namespace. Left on the control thread are the admin commands that replace a
// lost queue pair, which come when the controller has just started, and the lock behind which
// memory is attached.
#pragma once

#include "base/event_loop.h"
#include "base/kmod.h"
#include "base/result.h"
#include "base/storage_worker.h"
#include "daemon/poller.h"
#include "engine/nvme.h"
#include "frontend/guest_memory.h"

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

namespace vql {

class controller {
  public:
    // Take the controller at PCI address @bdf for this process alone, with queue pairs for
    // @pollers. Refused: not bound to the module, used by another daemon, untranslated DMA unless
    // @allow_untranslated. Waits for another process to let go of it, and for the drive: on any
    // thread. All else is for the control thread, where start() comes next.
    static result<std::unique_ptr<controller>> open(const std::string& bdf, uint32_t index,
                                                    bool allow_untranslated, bool patient,
                                                    size_t pollers, event_loop& loop);
    // Hand its queue pairs to the pollers, one each.
    void start(const std::vector<std::unique_ptr<poller>>& pollers);
    ~controller();
    controller(const controller&) = delete;
    controller& operator=(const controller&) = delete;

    const std::string& bdf() const { return bdf_; }
    uint32_t index() const { return index_; }
    // Pollers 0…lanes()-1 can reach it.
    size_t lanes() const { return lanes_.size(); }
    const vql_ctrl_info& info() const { return info_; }
    // Counts what may have changed a namespace: events, resets.
    uint32_t changes() const { return changes_; }
    int fd() const { return device_->fd(); } // the module knows it by that
    // To ask the drive for something, which may wait for it: on any thread, also after our end.
    std::shared_ptr<const kmod_ctrl> device() const { return device_; }

    // Map a guest's memory for the controller's DMA, on all lanes. @space outlives the attachment.
    result<void> attach(const guest_memory& memory, const kmod_mspace& space);
    // No command of the daemon's touches it any more.
    void detach(const guest_memory& memory);
    // What pieces on poller @on_poller carry for that memory; null when it is not attached. Stays
    // where it is until detach().
    const dma_view* view(const guest_memory& memory, size_t on_poller) const;

    // No target is left: let go of everything, then @done. The object may be destroyed after that.
    void close(std::function<void()> done);
    // Once a second: try again what could not be done at once.
    void tick();

  private:
    // A queue pair, with guards against SIGBUS: the module takes the pages of a lost one away, and
    // the poller may touch them once more. (The status page stays, and was written before.)
    struct guarded_pair {
        kmod_qpair pair;
        std::vector<int> guards;
        ~guarded_pair();
        bool lost() const { return vql_load_acquire(pair.queue().state) != 0; }
    };
    struct attachment {
        const guest_memory* memory;
        const kmod_mspace* space;
        kmod_dma_table table; // of the lane's queue pair; empty while that is lost
        dma_view view;        // changes on the poller's thread
    };
    // One poller's share. What the poller's thread still uses of an old pair or table when a new
    // one takes its place is kept alive by the message that tells it of the new one.
    struct lane {
        poller* on = nullptr;
        std::shared_ptr<guarded_pair> pair;
        nvme_lane served;
        std::vector<std::shared_ptr<attachment>> attachments;
        bool lost = false;
        bool failed = false; // … for good
        uint32_t tries = 0;  // to replace it
    };

    controller(const std::string& bdf, uint32_t index, event_loop& loop)
        : bdf_(bdf), index_(index), loop_(loop) {}
    result<void> take(bool allow_untranslated, bool patient);
    result<void> open_lanes(size_t pollers);
    result<std::shared_ptr<guarded_pair>> make_pair();
    static result<kmod_dma_table> make_table(const guarded_pair& p, const kmod_mspace& space);
    nvme_queue queue_of(const guarded_pair& p) const;
    void lane_lost(lane& l);
    void recover(lane& l);
    void give_up(lane& l, const std::string& why);
    void overdue(lane& l, std::vector<uint16_t> cids);

    std::string bdf_;
    uint32_t index_;
    event_loop& loop_;
    std::shared_ptr<const kmod_ctrl> device_;
    vql_ctrl_info info_{};
    uint32_t changes_ = 0;
    std::vector<std::unique_ptr<lane>> lanes_;
    bool told_gone_ = false;
    bool closing_ = false;

    // Aborts overdue commands and, if that does not help, resets the controller: both can block.
    std::thread rescuer_;
    std::atomic<bool> rescuing_{false};
};

// All of them.
class controller_set {
  public:
    using completion = std::function<void(const result<controller*>&)>;

    controller_set(event_loop& loop, const std::vector<std::unique_ptr<poller>>& pollers,
                   bool allow_untranslated)
        : loop_(loop), pollers_(pollers), allow_untranslated_(allow_untranslated) {}

    // @done with the controller at @bdf, when it is open; never from within. Each use() that has
    // got one is ended by one unuse(), whose @done is called when the controller is closed, or at
    // once if others use it.
    void use(const std::string& bdf, completion done);
    void unuse(uint32_t index, std::function<void()> done);
    controller& at(uint32_t index) const { return *slots_[index].what; }
    // From now on what is not open yet is tried for a second at a time: whoever asks for a
    // controller that another process has is to know soon.
    void serving() { patient_ = false; }
    void tick();

  private:
    struct slot {
        std::string bdf; // empty: free
        std::unique_ptr<controller> what;
        uint32_t users = 0;
        std::vector<completion> waiting; // while the worker opens it, or lets go of it
        std::unique_ptr<storage_worker> worker;
    };
    void open(slot& s);
    void opened(slot& s, result<std::unique_ptr<controller>> c);

    event_loop& loop_;
    const std::vector<std::unique_ptr<poller>>& pollers_;
    bool allow_untranslated_;
    bool patient_ = true;
    std::array<slot, VQL_MAX_CONTROLLERS> slots_;
};

} // namespace vql
