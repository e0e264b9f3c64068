// SPDX-License-Identifier: GPL-2.0-only
// A test case that hangs fails, by name: SIGALRM aborts it and Catch2 reports where it was.
#include <catch2/reporters/catch_reporter_event_listener.hpp>
#include <catch2/reporters/catch_reporter_registrars.hpp>
#include <csignal>
#include <cstdlib>
#include <unistd.h>

namespace {

constexpr unsigned seconds = 120; // under ThreadSanitizer on a busy machine, too

class time_limit : public Catch::EventListenerBase {
  public:
    using EventListenerBase::EventListenerBase;

    void testCaseStarting(const Catch::TestCaseInfo&) override {
        std::signal(SIGALRM, [](int) {
            constexpr char text[] = "the test case below hangs: stopped after its time limit\n";
            [[maybe_unused]] ssize_t n = ::write(STDERR_FILENO, text, sizeof(text) - 1);
            std::abort();
        });
        ::alarm(seconds);
    }
    void testCaseEnded(const Catch::TestCaseStats&) override { ::alarm(0); }
};

} // namespace

CATCH_REGISTER_LISTENER(time_limit)
