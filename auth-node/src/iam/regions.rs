//! Where STS is, by region. A region that AWS adds is one for a release of this program to add: nothing is made of what a
//! joiner says but a choice among these.

/// A partition of AWS, with its own accounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Partition {
    /// As in ARNs.
    pub(crate) name: &'static str,
    domain: &'static str,
    regions: &'static [&'static str],
}

/// As AWS documents them (AWS General Reference, "AWS Security Token Service endpoints and quotas").
const PARTITIONS: [Partition; 3] = [
    Partition {
        name: "aws",
        domain: "amazonaws.com",
        regions: &[
            "af-south-1",
            "ap-east-1",
            "ap-east-2",
            "ap-northeast-1",
            "ap-northeast-2",
            "ap-northeast-3",
            "ap-south-1",
            "ap-south-2",
            "ap-southeast-1",
            "ap-southeast-2",
            "ap-southeast-3",
            "ap-southeast-4",
            "ap-southeast-5",
            "ap-southeast-6",
            "ap-southeast-7",
            "ca-central-1",
            "ca-west-1",
            "eu-central-1",
            "eu-central-2",
            "eu-north-1",
            "eu-south-1",
            "eu-south-2",
            "eu-west-1",
            "eu-west-2",
            "eu-west-3",
            "il-central-1",
            "me-central-1",
            "me-south-1",
            "mx-central-1",
            "sa-east-1",
            "us-east-1",
            "us-east-2",
            "us-west-1",
            "us-west-2",
        ],
    },
    Partition { name: "aws-cn", domain: "amazonaws.com.cn", regions: &["cn-north-1", "cn-northwest-1"] },
    Partition { name: "aws-us-gov", domain: "amazonaws.com", regions: &["us-gov-east-1", "us-gov-west-1"] },
];

/// Host of the STS of a region, and the partition that it is of. `None`: there is no such region.
pub(crate) fn sts(region: &str) -> Option<(String, Partition)> {
    let partition = PARTITIONS.into_iter().find(|partition| partition.regions.contains(&region))?;
    Some((format!("sts.{region}.{}", partition.domain), partition))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_region_has_the_host_of_its_partition() {
        let found = |region| sts(region).map(|(host, partition)| (host, partition.name));
        let is = |region, host: &str, partition| assert_eq!(found(region), Some((host.into(), partition)));
        is("us-east-1", "sts.us-east-1.amazonaws.com", "aws");
        is("cn-north-1", "sts.cn-north-1.amazonaws.com.cn", "aws-cn");
        is("us-gov-west-1", "sts.us-gov-west-1.amazonaws.com", "aws-us-gov");
        let all: BTreeSet<_> = PARTITIONS.iter().flat_map(|partition| partition.regions).collect();
        assert_eq!(all.len(), PARTITIONS.iter().map(|partition| partition.regions.len()).sum::<usize>());
    }

    #[test]
    fn what_is_no_region_of_the_table_has_no_host() {
        for bad in [
            "",
            "us-east-9",
            "US-EAST-1",
            "aws-global",
            "us-east-1.evil.example",
            "evil.example#",
            "us-east-1/",
            "us-east-1@evil.example",
            " us-east-1",
            "us-iso-east-1",
        ] {
            assert_eq!(sts(bad), None, "{bad:?}");
        }
    }
}
