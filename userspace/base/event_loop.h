// SPDX-License-Identifier: GPL-2.0-only
// The control thread's loop: sockets, and calls posted from other threads. All that is not I/O
// happens here, one callback at a time, so the control path needs no locks of its own.
#pragma once

#include "base/fd.h"
#include "base/spare_descriptor.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace vql {

class event_loop {
  public:
    using callback = std::function<void(uint32_t events)>;

    event_loop();

    // Watch @fd for @events (EPOLL…). The fd stays the caller's, who removes it before closing it.
    void add(int fd, uint32_t events, callback cb);
    void modify(int fd, uint32_t events);
    void remove(int fd);

    // Run @fn on the loop's thread. From any thread.
    void post(std::function<void()> fn);

    // Call @tick about once a second, until the loop ends.
    void every_second(std::function<void()> tick);

    // For accepting clients that are turned away when no descriptor is left: in use for the moment
    // of one callback only.
    spare_descriptor& spare() { return spare_; }

    // Until stop(). Both on the loop's thread, or before it runs.
    void run();
    void stop() { running_ = false; }
    // Handle what is ready now or within @timeout_ms, once.
    void run_once(int timeout_ms);

  private:
    void run_posted();

    unique_fd epoll_, wake_;
    spare_descriptor spare_;
    std::unordered_map<int, std::shared_ptr<callback>> callbacks_;
    std::vector<unique_fd> timers_;
    std::mutex mutex_; // guards posted_
    std::vector<std::function<void()>> posted_;
    bool running_ = true;
};

} // namespace vql
