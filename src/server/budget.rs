//! How many connections there may be, in all and from one address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

/// Counts connections by the address that they come from.
#[derive(Debug)]
pub(crate) struct Addresses {
    each_max: NonZeroUsize,
    open: Mutex<HashMap<IpAddr, usize>>,
}

/// One connection of an address, until it is dropped.
#[derive(Debug)]
pub(crate) struct AddressSlot {
    addresses: Arc<Addresses>,
    address: IpAddr,
}

impl Addresses {
    pub(crate) fn new(each_max: NonZeroUsize) -> Self {
        Self { each_max, open: Mutex::default() }
    }

    /// A slot for one more connection, or `None` if the address has all that it may have. An IPv4
    /// address counts as the same whichever kind of socket it comes in by.
    pub(crate) fn admit(self: &Arc<Self>, address: IpAddr) -> Option<AddressSlot> {
        let address = address.to_canonical();
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(address).or_default();
        if *count >= self.each_max.get() {
            return None;
        }
        *count = count.saturating_add(1);
        Some(AddressSlot { addresses: Arc::clone(self), address })
    }
}

impl Drop for AddressSlot {
    fn drop(&mut self) {
        let mut open = self.addresses.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.address) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_gets_its_slots_back_and_takes_none_of_others() {
        let addresses = Arc::new(Addresses::new(NonZeroUsize::new(2).unwrap()));
        let [one, same, other] =
            ["192.0.2.1", "::ffff:192.0.2.1", "192.0.2.10"].map(|text| text.parse().unwrap());
        let first = addresses.admit(one).unwrap();
        let _second = addresses.admit(same).unwrap();
        assert!(addresses.admit(one).is_none());
        let last = addresses.admit(other).unwrap();
        drop(first);
        assert!(addresses.admit(one).is_some());
        drop(last);
        assert_eq!(addresses.open.lock().unwrap().len(), 1);
    }
}
