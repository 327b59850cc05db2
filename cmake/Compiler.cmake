# How our own code is compiled.

find_program(THINWIRE_CCACHE ccache)
if(THINWIRE_CCACHE)
  # The sloppiness is what ccache needs to cache a file that uses a precompiled header.
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env
      CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
      ${THINWIRE_CCACHE})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${THINWIRE_CCACHE})
endif()

add_library(thinwire_compile INTERFACE)
# Replicated arithmetic must not depend on what a compiler chooses to fuse.
set(_cxx -Wall -Wextra -Wconversion -Wshadow -Wnon-virtual-dtor -Woverloaded-virtual
    -ffp-contract=off)
set(_cuda -fmad=false --prec-div=true --prec-sqrt=true -Xcompiler=-fPIC,-Wall,-Wextra)
target_compile_options(thinwire_compile INTERFACE
  "$<$<COMPILE_LANGUAGE:CXX>:${_cxx}>" "$<$<COMPILE_LANGUAGE:CUDA>:${_cuda}>")
# The torch wheel brings its own {fmt} headers, which come first wherever torch is used.
target_compile_definitions(thinwire_compile INTERFACE FMT_HEADER_ONLY=1)
option(THINWIRE_WERROR "warnings are errors" OFF)
if(THINWIRE_WERROR)
  target_compile_options(thinwire_compile INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Werror>
                         "$<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings;-Xcompiler=-Werror>")
endif()
if(THINWIRE_SANITIZE STREQUAL "address")
  set(_sanitize -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer)
elseif(THINWIRE_SANITIZE STREQUAL "thread")
  set(_sanitize -fsanitize=thread -fno-omit-frame-pointer)
elseif(THINWIRE_SANITIZE)
  message(FATAL_ERROR "THINWIRE_SANITIZE is '${THINWIRE_SANITIZE}'; give address or thread")
endif()
if(THINWIRE_SANITIZE)
  target_compile_options(thinwire_compile INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:${_sanitize}>")
  target_link_options(thinwire_compile INTERFACE ${_sanitize})
endif()

# One library per layer and backend: thinwire_library(name) makes thinwire_<name> and its alias
# thinwire::<name>, installed and exported. Sources are added with target_sources().
function(thinwire_library name)
  add_library(thinwire_${name} STATIC)
  add_library(thinwire::${name} ALIAS thinwire_${name})
  target_include_directories(thinwire_${name} PUBLIC
    $<BUILD_INTERFACE:${CMAKE_SOURCE_DIR}>
    $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}/thinwire>)
  target_link_libraries(thinwire_${name} PUBLIC thinwire::torch PRIVATE $<BUILD_INTERFACE:thinwire_compile>)
  set_target_properties(thinwire_${name} PROPERTIES EXPORT_NAME ${name})
  set_property(GLOBAL APPEND PROPERTY THINWIRE_LIBRARIES thinwire_${name})
endfunction()

# <torch/torch.h> costs 16 s a file; one precompiled header serves every target that needs it.
function(thinwire_use_torch_pch target)
  if(NOT TARGET thinwire_torch_pch)
    file(WRITE "${CMAKE_BINARY_DIR}/torch_pch.cpp" "")
    add_library(thinwire_torch_pch OBJECT "${CMAKE_BINARY_DIR}/torch_pch.cpp")
    target_link_libraries(thinwire_torch_pch PRIVATE thinwire::torch thinwire_compile)
    target_precompile_headers(thinwire_torch_pch PRIVATE <torch/torch.h>)
  endif()
  target_precompile_headers(${target} REUSE_FROM thinwire_torch_pch)
endfunction()
