// SPDX-License-Identifier: GPL-2.0-only
// A test case that hangs fails, by name: SIGALRM aborts it and Catch2 reports where it was. On a
// slow machine VQL_SLOWER is how many times as long as usual it may take.
#include <algorithm>
#include <catch2/reporters/catch_reporter_event_listener.hpp>
#include <catch2/reporters/catch_reporter_registrars.hpp>
#include <csignal>
#include <cstdlib>
#include <unistd.h>

namespace {

unsigned seconds() {
    const char* slower = std::getenv("VQL_SLOWER");
    unsigned long times = slower != nullptr ? std::strtoul(slower, nullptr, 10) : 1;
    return 120 *
           static_cast<unsigned>(std::clamp(times, 1UL, 1000UL)); // under ThreadSanitizer, too
}

class time_limit : public Catch::EventListenerBase {
  public:
    using EventListenerBase::EventListenerBase;

    void testCaseStarting(const Catch::TestCaseInfo&) override {
        std::signal(SIGALRM, [](int) {
            constexpr char text[] = "the test case below hangs: stopped after its time limit\n";
            [[maybe_unused]] ssize_t n = ::write(STDERR_FILENO, text, sizeof(text) - 1);
            std::abort();
        });
        ::alarm(seconds());
    }
    void testCaseEnded(const Catch::TestCaseStats&) override { ::alarm(0); }
};

} // namespace

CATCH_REGISTER_LISTENER(time_limit)
