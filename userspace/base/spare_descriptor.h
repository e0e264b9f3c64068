// SPDX-License-Identifier: GPL-2.0-only
// A file descriptor kept for when the process has no more. A listening socket whose clients cannot
// be accepted stays readable: whoever waits for that spins, and its clients wait in silence. With
// the spare one's place a client can be accepted all the same, and told no, or be the one that is
// still served.
#pragma once

#include "base/fd.h"

#include <chrono>

namespace vql {

class spare_descriptor {
  public:
    spare_descriptor() { refill(); }

    struct accepted {
        unique_fd fd;
        bool spare = false; // it has the spare one's place: refill() when it is closed
    };
    // Accept a client of @listener, without blocking; the log tells, once, when descriptors run out
    // and when there are some again. No fd: nobody is there, or there is not even a spare one.
    accepted accept(int listener);
    // Was the last client left waiting for want of a descriptor?
    bool short_of() const { return short_; }
    // Keep one again. False: there is none to be had yet.
    bool refill();

  private:
    unique_fd fd_;
    bool short_ = false; // the last accept() found none, not even a spare one
    bool told_ = false;  // the log has it that there are none
    std::chrono::steady_clock::time_point last_short_{};
};

} // namespace vql
